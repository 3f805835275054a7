"""What the sets share that are published as folders of JPEG files named by WordNet ids, such as n02123045."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from robustfast.data.dataset import check_split, require
from robustfast.data.image_files import ImageFiles
from robustfast.data.image_folder import class_images, images_in
from robustfast.errors import UserError

__all__ = ["FOLDERS", "check_complete", "class_folder", "find_root", "load_classes"]

FOLDERS = {"train": "train", "test": "val"}
"""Each split's folder. The labels of the sets' own test images were never published, so val is what is tested on."""


def find_root(
    name: str, split: str, data_dir: str | Path | None, places: Sequence[str], wanted: str, published: str
) -> Path:
    """Return the one folder among `places`, relative to `data_dir`, that holds the split's folder.

    Args:
        name: of the data set.
        split: "train" or "test".
        data_dir: where to look.
        places: folders the set may lie in; those named after the set come first and "." last.
        wanted: what lies in such a folder, for messages.
        published: where it is had from, likewise.

    Raises:
        UserError: none of them holds it, or several named ones do; Pillow is missing; an unknown split.
    """
    check_split(split)
    require("PIL", "Pillow", name)
    if data_dir is None:
        raise UserError(
            f"{name} needs a data folder that holds {wanted} (published at {published}): give --data-dir"
        )
    if not Path(data_dir).is_dir():
        raise UserError(
            f"{name}: the data folder {data_dir} does not exist; put {wanted} there "
            f"(published at {published}) or give --data-dir"
        )
    folders = [Path(data_dir) / place for place in places]
    found = [folder for folder in folders if (folder / FOLDERS[split]).is_dir()]
    named = [folder for folder in found if folder != Path(data_dir)]
    if len(named) > 1:
        raise UserError(
            f"{name} is there {len(named)} times, in {' and '.join(map(str, named))}: give one of them with --data-dir"
        )
    if not found:
        raise UserError(
            f"{name} not found: expected {wanted} in one of {', '.join(map(str, folders))}; "
            f"published at {published}: unpack it there or give its folder with --data-dir"
        )
    return found[0]


def load_classes(
    name: str, part: Path, classes: Mapping[str, str], image_size: int, published: str
) -> ImageFiles:
    """Return the images of PART/WNID/*.JPEG for the classes listed; folders of others are left alone.

    Args:
        name: of the data set.
        part: the split's folder.
        classes: the name of each class by its WordNet id, in the order of the labels.
        image_size: as in `ImageFiles`.
        published: where the set is had from.

    Raises:
        UserError: a class without a folder or without images, or files that are no images in one.
    """
    members = {
        label: images_in(class_folder(name, part, wnid, classes, published))
        for label, wnid in enumerate(classes)
    }
    files, labels = class_images(members)
    return ImageFiles(name, files, labels, tuple(classes.values()), image_size, given_channels=3)


def class_folder(name: str, part: Path, wnid: str, classes: Mapping[str, str], published: str) -> Path:
    """Return the folder of one class, or say which of `classes` have none.

    Raises:
        UserError: it is missing.
    """
    folder = part / wnid
    if not folder.is_dir():
        missing = [each for each in classes if not (part / each).is_dir()]
        raise UserError(
            f"{name}: {part} lacks {len(missing)} of the {len(classes)} class folders, the first being "
            f"{missing[0]} ({classes[missing[0]]}); unpack the whole set, published at {published}"
        )
    return folder


def check_complete(folder: Path, files: Collection[Path], listed: Collection[str], where: Path) -> None:
    """Raise UserError unless every name that the list `where` states for `folder` is among `files`."""
    present = {file.name for file in files}
    missing = sorted(name for name in listed if name not in present)
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of the {len(listed)} images that {where} lists, the first being "
            f"{missing[0]}; unpack the set again"
        )

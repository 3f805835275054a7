"""Find a data set's files, or say which are expected where and who publishes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustfast.errors import UserError

__all__ = ["Layout", "locate"]


@dataclass(frozen=True)
class Layout:
    """One form in which a data set is published.

    Attributes:
        folders: where its files may lie, relative to the data folder. The named ones come first and "." last: MNIST and
            Fashion-MNIST use the same file names, and a folder's name is all that tells them apart.
        files: each file as messages show it, and the spellings accepted on disk.
    """

    folders: tuple[str, ...]
    files: Mapping[str, tuple[str, ...]]


def locate(
    name: str, data_dir: str | Path | None, layouts: Sequence[Layout], published: str
) -> tuple[Layout, list[Path]]:
    """Return the first layout that is complete in some folder, and its files in the layout's order.

    Raises:
        UserError: none is complete; the message lists the files, every folder searched, what a partly filled folder
            lacks, and the publishing page.
    """
    wanted = " or ".join(", ".join(layout.files) for layout in layouts)
    if data_dir is None:
        raise UserError(
            f"{name} needs a data folder that holds {wanted} (published at {published}): give --data-dir"
        )
    if not Path(data_dir).is_dir():
        fault = "is no folder" if Path(data_dir).exists() else "does not exist"
        raise UserError(
            f"{name}: the data folder {data_dir} {fault}; put {wanted} there "
            f"(published at {published}) or give --data-dir"
        )
    searched: list[str] = []
    partial: list[str] = []
    for layout in layouts:
        for relative in layout.folders:
            folder = Path(data_dir) / relative
            searched.append(str(folder))
            hits = {
                shown: next(
                    (folder / spelling for spelling in spellings if (folder / spelling).is_file()), None
                )
                for shown, spellings in layout.files.items()
            }
            paths = [path for path in hits.values() if path]
            if len(paths) == len(hits):
                return layout, paths
            if paths:
                partial.append(
                    f"{folder} lacks {', '.join(shown for shown, path in hits.items() if not path)}; "
                )
    raise UserError(
        f"{name} not found: expected {wanted} in one of {', '.join(dict.fromkeys(searched))}; {''.join(partial)}"
        f"published at {published}: unpack it there or give its folder with --data-dir"
    )

"""Restricted ImageNet: the 203 classes of ImageNet on which the CD-VAE paper works, each a class of its own.

Source: digest section C8 of that paper: ImageNet's class numbers 30-37, 80-100, 118-121, 151-268, 281-285, 300-319,
365-382 and 389-397, with 257,748 training and 10,150 validation images. The numbers count the 1,000 WordNet ids of
ILSVRC 2012 in sorted order from 0. (Elsewhere the same ids, merged into nine classes, go by the same name.)
"""

from __future__ import annotations

from pathlib import Path

from robustfast.data.image_files import ImageFiles
from robustfast.data.image_tree import FOLDERS, find_root, load_classes
from robustfast.errors import UserError

__all__ = ["CLASSES", "load"]

PUBLISHED = "https://image-net.org (ILSVRC 2012)"
PLACES = ("restricted_imagenet", "imagenet", "ILSVRC/Data/CLS-LOC", "imagenet/ILSVRC/Data/CLS-LOC", ".")
IMAGE_SIZE = 224


def load(split: str, data_dir: str | Path | None, *, image_size: int | None = None) -> ImageFiles:
    """Return the 203 classes, from a folder with these alone or with all of ImageNet; val is the test split.

    The labels 0 to 202 follow ImageNet's numbers, the samples the order of class, then file name.

    Args:
        split: "train" or "test".
        data_dir: the folder that holds train/WNID and val/WNID, or one that holds it under the name
            restricted_imagenet, imagenet or ILSVRC/Data/CLS-LOC.
        image_size: the side in pixels to which images are brought; None: 224.

    Raises:
        UserError: missing classes or images, validation images that are not sorted into classes.
    """
    wanted = "train/WNID/*.JPEG and val/WNID/*.JPEG"
    root = find_root("restricted_imagenet", split, data_dir, PLACES, wanted, PUBLISHED)
    part = root / FOLDERS[split]
    loose = next(part.glob("ILSVRC2012_val_*"), None)
    if loose is not None:
        raise UserError(
            f"{loose} lies in no class folder: sort the validation images into {part}/WNID, by the labels of the "
            f"development kit that {PUBLISHED} has beside them"
        )
    size = IMAGE_SIZE if image_size is None else image_size
    return load_classes("restricted_imagenet", part, dict(CLASSES.values()), size, PUBLISHED)


CLASSES = {
    # frogs and turtles
    30: ("n01641577", "bullfrog"),
    31: ("n01644373", "tree frog"),
    32: ("n01644900", "tailed frog"),
    33: ("n01664065", "loggerhead"),
    34: ("n01665541", "leatherback turtle"),
    35: ("n01667114", "mud turtle"),
    36: ("n01667778", "terrapin"),
    37: ("n01669191", "box turtle"),
    # birds
    80: ("n01795545", "black grouse"),
    81: ("n01796340", "ptarmigan"),
    82: ("n01797886", "ruffed grouse"),
    83: ("n01798484", "prairie chicken"),
    84: ("n01806143", "peacock"),
    85: ("n01806567", "quail"),
    86: ("n01807496", "partridge"),
    87: ("n01817953", "African grey"),
    88: ("n01818515", "macaw"),
    89: ("n01819313", "sulphur-crested cockatoo"),
    90: ("n01820546", "lorikeet"),
    91: ("n01824575", "coucal"),
    92: ("n01828970", "bee eater"),
    93: ("n01829413", "hornbill"),
    94: ("n01833805", "hummingbird"),
    95: ("n01843065", "jacamar"),
    96: ("n01843383", "toucan"),
    97: ("n01847000", "drake"),
    98: ("n01855032", "red-breasted merganser"),
    99: ("n01855672", "goose"),
    100: ("n01860187", "black swan"),
    # crabs
    118: ("n01978287", "Dungeness crab"),
    119: ("n01978455", "rock crab"),
    120: ("n01980166", "fiddler crab"),
    121: ("n01981276", "king crab"),
    # dogs
    151: ("n02085620", "Chihuahua"),
    152: ("n02085782", "Japanese spaniel"),
    153: ("n02085936", "Maltese dog"),
    154: ("n02086079", "Pekinese"),
    155: ("n02086240", "Shih-Tzu"),
    156: ("n02086646", "Blenheim spaniel"),
    157: ("n02086910", "papillon"),
    158: ("n02087046", "toy terrier"),
    159: ("n02087394", "Rhodesian ridgeback"),
    160: ("n02088094", "Afghan hound"),
    161: ("n02088238", "basset"),
    162: ("n02088364", "beagle"),
    163: ("n02088466", "bloodhound"),
    164: ("n02088632", "bluetick"),
    165: ("n02089078", "black-and-tan coonhound"),
    166: ("n02089867", "Walker hound"),
    167: ("n02089973", "English foxhound"),
    168: ("n02090379", "redbone"),
    169: ("n02090622", "borzoi"),
    170: ("n02090721", "Irish wolfhound"),
    171: ("n02091032", "Italian greyhound"),
    172: ("n02091134", "whippet"),
    173: ("n02091244", "Ibizan hound"),
    174: ("n02091467", "Norwegian elkhound"),
    175: ("n02091635", "otterhound"),
    176: ("n02091831", "Saluki"),
    177: ("n02092002", "Scottish deerhound"),
    178: ("n02092339", "Weimaraner"),
    179: ("n02093256", "Staffordshire bullterrier"),
    180: ("n02093428", "American Staffordshire terrier"),
    181: ("n02093647", "Bedlington terrier"),
    182: ("n02093754", "Border terrier"),
    183: ("n02093859", "Kerry blue terrier"),
    184: ("n02093991", "Irish terrier"),
    185: ("n02094114", "Norfolk terrier"),
    186: ("n02094258", "Norwich terrier"),
    187: ("n02094433", "Yorkshire terrier"),
    188: ("n02095314", "wire-haired fox terrier"),
    189: ("n02095570", "Lakeland terrier"),
    190: ("n02095889", "Sealyham terrier"),
    191: ("n02096051", "Airedale"),
    192: ("n02096177", "cairn"),
    193: ("n02096294", "Australian terrier"),
    194: ("n02096437", "Dandie Dinmont"),
    195: ("n02096585", "Boston bull"),
    196: ("n02097047", "miniature schnauzer"),
    197: ("n02097130", "giant schnauzer"),
    198: ("n02097209", "standard schnauzer"),
    199: ("n02097298", "Scotch terrier"),
    200: ("n02097474", "Tibetan terrier"),
    201: ("n02097658", "silky terrier"),
    202: ("n02098105", "soft-coated wheaten terrier"),
    203: ("n02098286", "West Highland white terrier"),
    204: ("n02098413", "Lhasa"),
    205: ("n02099267", "flat-coated retriever"),
    206: ("n02099429", "curly-coated retriever"),
    207: ("n02099601", "golden retriever"),
    208: ("n02099712", "Labrador retriever"),
    209: ("n02099849", "Chesapeake Bay retriever"),
    210: ("n02100236", "German short-haired pointer"),
    211: ("n02100583", "vizsla"),
    212: ("n02100735", "English setter"),
    213: ("n02100877", "Irish setter"),
    214: ("n02101006", "Gordon setter"),
    215: ("n02101388", "Brittany spaniel"),
    216: ("n02101556", "clumber"),
    217: ("n02102040", "English springer"),
    218: ("n02102177", "Welsh springer spaniel"),
    219: ("n02102318", "cocker spaniel"),
    220: ("n02102480", "Sussex spaniel"),
    221: ("n02102973", "Irish water spaniel"),
    222: ("n02104029", "kuvasz"),
    223: ("n02104365", "schipperke"),
    224: ("n02105056", "groenendael"),
    225: ("n02105162", "malinois"),
    226: ("n02105251", "briard"),
    227: ("n02105412", "kelpie"),
    228: ("n02105505", "komondor"),
    229: ("n02105641", "Old English sheepdog"),
    230: ("n02105855", "Shetland sheepdog"),
    231: ("n02106030", "collie"),
    232: ("n02106166", "Border collie"),
    233: ("n02106382", "Bouvier des Flandres"),
    234: ("n02106550", "Rottweiler"),
    235: ("n02106662", "German shepherd"),
    236: ("n02107142", "Doberman"),
    237: ("n02107312", "miniature pinscher"),
    238: ("n02107574", "Greater Swiss Mountain dog"),
    239: ("n02107683", "Bernese mountain dog"),
    240: ("n02107908", "Appenzeller"),
    241: ("n02108000", "EntleBucher"),
    242: ("n02108089", "boxer"),
    243: ("n02108422", "bull mastiff"),
    244: ("n02108551", "Tibetan mastiff"),
    245: ("n02108915", "French bulldog"),
    246: ("n02109047", "Great Dane"),
    247: ("n02109525", "Saint Bernard"),
    248: ("n02109961", "Eskimo dog"),
    249: ("n02110063", "malamute"),
    250: ("n02110185", "Siberian husky"),
    251: ("n02110341", "dalmatian"),
    252: ("n02110627", "affenpinscher"),
    253: ("n02110806", "basenji"),
    254: ("n02110958", "pug"),
    255: ("n02111129", "Leonberg"),
    256: ("n02111277", "Newfoundland"),
    257: ("n02111500", "Great Pyrenees"),
    258: ("n02111889", "Samoyed"),
    259: ("n02112018", "Pomeranian"),
    260: ("n02112137", "chow"),
    261: ("n02112350", "keeshond"),
    262: ("n02112706", "Brabancon griffon"),
    263: ("n02113023", "Pembroke"),
    264: ("n02113186", "Cardigan"),
    265: ("n02113624", "toy poodle"),
    266: ("n02113712", "miniature poodle"),
    267: ("n02113799", "standard poodle"),
    268: ("n02113978", "Mexican hairless"),
    # cats
    281: ("n02123045", "tabby"),
    282: ("n02123159", "tiger cat"),
    283: ("n02123394", "Persian cat"),
    284: ("n02123597", "Siamese cat"),
    285: ("n02124075", "Egyptian cat"),
    # insects
    300: ("n02165105", "tiger beetle"),
    301: ("n02165456", "ladybug"),
    302: ("n02167151", "ground beetle"),
    303: ("n02168699", "long-horned beetle"),
    304: ("n02169497", "leaf beetle"),
    305: ("n02172182", "dung beetle"),
    306: ("n02174001", "rhinoceros beetle"),
    307: ("n02177972", "weevil"),
    308: ("n02190166", "fly"),
    309: ("n02206856", "bee"),
    310: ("n02219486", "ant"),
    311: ("n02226429", "grasshopper"),
    312: ("n02229544", "cricket"),
    313: ("n02231487", "walking stick"),
    314: ("n02233338", "cockroach"),
    315: ("n02236044", "mantis"),
    316: ("n02256656", "cicada"),
    317: ("n02259212", "leafhopper"),
    318: ("n02264363", "lacewing"),
    319: ("n02268443", "dragonfly"),
    # primates
    365: ("n02480495", "orangutan"),
    366: ("n02480855", "gorilla"),
    367: ("n02481823", "chimpanzee"),
    368: ("n02483362", "gibbon"),
    369: ("n02483708", "siamang"),
    370: ("n02484975", "guenon"),
    371: ("n02486261", "patas"),
    372: ("n02486410", "baboon"),
    373: ("n02487347", "macaque"),
    374: ("n02488291", "langur"),
    375: ("n02488702", "colobus"),
    376: ("n02489166", "proboscis monkey"),
    377: ("n02490219", "marmoset"),
    378: ("n02492035", "capuchin"),
    379: ("n02492660", "howler monkey"),
    380: ("n02493509", "titi"),
    381: ("n02493793", "spider monkey"),
    382: ("n02494079", "squirrel monkey"),
    # fish
    389: ("n02514041", "barracouta"),
    390: ("n02526121", "eel"),
    391: ("n02536864", "coho"),
    392: ("n02606052", "rock beauty"),
    393: ("n02607072", "anemone fish"),
    394: ("n02640242", "sturgeon"),
    395: ("n02641379", "gar"),
    396: ("n02643566", "lionfish"),
    397: ("n02655020", "puffer"),
}
"""WordNet id and name by ImageNet's number of the class, in the order of the labels."""

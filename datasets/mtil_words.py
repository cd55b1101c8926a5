"""Class names and prompts of MTIL's tasks that no file of theirs holds.

From the prompt lists published with CLIP (Radford et al., ICML 2021; MIT licence) as MTIL uses them.
"""

CALTECH_NAMES = {
    "Faces": "off-center face",
    "Faces_easy": "centered face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
    "airplanes": "airplane",
    "car_side": "side of a car",
    "cougar_body": "body of a cougar cat",
    "cougar_face": "face of a cougar cat",
    "crocodile_head": "head of a crocodile",
    "flamingo_head": "head of a flamingo",
    "snoopy": "snoopy (cartoon beagle)",
    "yin_yang": "yin and yang symbol",
}  # others: the folder's name

EUROSAT_NAMES = {
    "AnnualCrop": "annual crop land",
    "Forest": "forest",
    "HerbaceousVegetation": "brushland or shrubland",
    "Highway": "highway or road",
    "Industrial": "industrial buildings or commercial buildings",
    "Pasture": "pasture land",
    "PermanentCrop": "permanent crop land",
    "Residential": "residential buildings or homes or apartments",
    "River": "river",
    "SeaLake": "lake or sea",
}

FLOWER_NAMES = tuple(
    """pink primrose,hard-leaved pocket orchid,canterbury bells,sweet pea,english marigold,tiger lily,moon orchid,
    bird of paradise,monkshood,globe thistle,snapdragon,colt's foot,king protea,spear thistle,yellow iris,globe-flower,
    purple coneflower,peruvian lily,balloon flower,giant white arum lily,fire lily,pincushion flower,fritillary,
    red ginger,grape hyacinth,corn poppy,prince of wales feathers,stemless gentian,artichoke,sweet william,carnation,
    garden phlox,love in the mist,mexican aster,alpine sea holly,ruby-lipped cattleya,cape flower,great masterwort,
    siam tulip,lenten rose,barbeton daisy,daffodil,sword lily,poinsettia,bolero deep blue,wallflower,marigold,buttercup,
    oxeye daisy,common dandelion,petunia,wild pansy,primula,sunflower,pelargonium,bishop of llandaff,gaura,geranium,
    orange dahlia,pink-yellow dahlia,cautleya spicata,japanese anemone,black-eyed susan,silverbush,californian poppy,
    osteospermum,spring crocus,bearded iris,windflower,tree poppy,gazania,azalea,water lily,rose,thorn apple,
    morning glory,passion flower,lotus,toad lily,anthurium,frangipani,clematis,hibiscus,columbine,desert-rose,
    tree mallow,magnolia,cyclamen,watercress,canna lily,hippeastrum,bee balm,ball moss,foxglove,bougainvillea,camellia,
    mallow,mexican petunia,bromelia,blanket flower,trumpet creeper,blackberry lily""".replace("\n    ", "").split(",")
)

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGIT_NAMES = tuple(f"{i} - {word}" for i, word in enumerate(_DIGITS))

_THINGS = (
    "a photo of {} {{}}.",
    "a painting of {} {{}}.",
    "{} plastic {{}}.",
    "a sculpture of {} {{}}.",
    "a sketch of {} {{}}.",
    "a tattoo of {} {{}}.",
    "{} toy {{}}.",
    "a rendition of {} {{}}.",
    "{} embroidered {{}}.",
    "{} cartoon {{}}.",
    "{} {{}} in a video game.",
    "{} plushie {{}}.",
    "{} origami {{}}.",
    "art of {} {{}}.",
    "graffiti of {} {{}}.",
    "a drawing of {} {{}}.",
    "a doodle of {} {{}}.",
)
_PHOTOS = ("", "blurry ", "black and white ", "low contrast ", "high contrast ", "bad ", "good ")


def _articles(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """All patterns with "a", then all with "the"."""
    return tuple(pattern.format(article) for article in ("a", "the") for pattern in patterns)


THING_PROMPTS = _articles(_THINGS)
PHOTO_PROMPTS = _articles(
    (*(f"a {kind}photo of {{}} {{{{}}}}." for kind in _PHOTOS), "a photo of {} small {{}}.", "a photo of {} big {{}}.")
)
TEXTURE_PROMPTS = _articles(
    tuple(f"a photo of {{}} {{{{}}}} {kind}." for kind in ["texture", "pattern", "thing", "object"])
)
SATELLITE_PROMPTS = tuple(f"a centered satellite photo of {article}{{}}." for article in ("", "a ", "the "))
CAR_PROMPTS = (
    "a photo of a {}, a type of car.",
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of my {}.",
    "i love my {}!",
    "a photo of my dirty {}.",
    "a photo of my clean {}.",
    "a photo of my new {}.",
    "a photo of my old {}.",
)
AIRCRAFT_PROMPTS = _articles(("a photo of {} {{}}, a type of aircraft.",))
PLACE_PROMPTS = _articles(("a photo of {} {{}}.",))

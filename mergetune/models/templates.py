"""Lists of prompt templates that OpenAI published with CLIP (arXiv 2103.00020), by name.

A zero-shot classifier over a list is the mean of the normalised text features of its prompts: see
`dassl.clip.text_classifier`.
"""

from collections.abc import Sequence

from dassl.utils import check_availability

# 80 prompts for ImageNet, used by CLIP's own evaluation and by WiSE-FT (arXiv 2109.01903).
IMAGENET = (
    "a bad photo of a {}.", "a photo of many {}.", "a sculpture of a {}.", "a photo of the hard to see {}.",
    "a low resolution photo of the {}.", "a rendering of a {}.", "graffiti of a {}.", "a bad photo of the {}.",
    "a cropped photo of the {}.", "a tattoo of a {}.", "the embroidered {}.", "a photo of a hard to see {}.",
    "a bright photo of a {}.", "a photo of a clean {}.", "a photo of a dirty {}.", "a dark photo of the {}.",
    "a drawing of a {}.", "a photo of my {}.", "the plastic {}.", "a photo of the cool {}.",
    "a close-up photo of a {}.", "a black and white photo of the {}.", "a painting of the {}.",
    "a painting of a {}.", "a pixelated photo of the {}.", "a sculpture of the {}.", "a bright photo of the {}.",
    "a cropped photo of a {}.", "a plastic {}.", "a photo of the dirty {}.", "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.", "a photo of the {}.", "a good photo of the {}.", "a rendering of the {}.",
    "a {} in a video game.", "a photo of one {}.", "a doodle of a {}.", "a close-up photo of the {}.",
    "a photo of a {}.", "the origami {}.", "the {} in a video game.", "a sketch of a {}.", "a doodle of the {}.",
    "a origami {}.", "a low resolution photo of a {}.", "the toy {}.", "a rendition of the {}.",
    "a photo of the clean {}.", "a photo of a large {}.", "a rendition of a {}.", "a photo of a nice {}.",
    "a photo of a weird {}.", "a blurry photo of a {}.", "a cartoon {}.", "art of a {}.", "a sketch of the {}.",
    "a embroidered {}.", "a pixelated photo of a {}.", "itap of the {}.", "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.", "a plushie {}.", "a photo of the nice {}.", "a photo of the small {}.",
    "a photo of the weird {}.", "the cartoon {}.", "art of the {}.", "a drawing of the {}.",
    "a photo of the large {}.", "a black and white photo of a {}.", "the plushie {}.", "a dark photo of a {}.",
    "itap of a {}.", "graffiti of the {}.", "a toy {}.", "itap of my {}.", "a photo of a cool {}.",
    "a photo of a small {}.", "a tattoo of the {}.",
)  # fmt: skip

# The seven of them that CLIP's notebook found to do nearly as well; CoOp's ZeroshotCLIP2 uses these.
SELECT = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

LISTS = {"imagenet": IMAGENET, "select": SELECT}
OWN = "dataset"  # the data set's own template, alone


def templates(name: str, template: str = "a photo of a {}.") -> Sequence[str]:
    """The list called `name`, or (`template`,) for "dataset". UserError names what there is."""
    check_availability(name, [OWN, *LISTS], "The list of templates")
    return (template,) if name == OWN else LISTS[name]


def described(name: str, prompts: Sequence[str]) -> str:
    """What results.json says of the prompts of a zero-shot classifier: the template, or the list and its length."""
    return prompts[0] if len(prompts) == 1 else f"{name}: {len(prompts)} templates"

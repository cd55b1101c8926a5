"""MTIL, multi-domain task-incremental learning (Zheng et al., ICCV 2023; ConDU, arXiv 2503.10705), as a base class.

A task is a data set with training and test images and no validation images: the official lists, or a seeded
80/20 split where there are none. Few-shot MTIL keeps k training images a class, drawn as everywhere else in
this project; the original takes the first k met in a shuffled pass instead, which no seed reproduces. These
splits are not CoOp's: a model trained on one must not be tested on the other.
"""

from .base import FewShotDataset


class MtilDataset(FewShotDataset):
    """A task of a stream. Class attributes to declare, beside those of FewShotDataset:

    `task`: its name in the stream. `prompts`: templates; the first one trains, evaluation averages all.
    A subclass overrides `read` and returns ([training], [], [test]); labels are 0, 1, ... in class order.
    """

    task = ""
    prompts: tuple[str, ...] | list[str] = ("a photo of a {}.",)

    def __init__(self, cfg):
        self.prompts = list(self.prompts)
        self.templates = dict.fromkeys(self.templates, self.prompts[0])
        super().__init__(cfg)

    def metadata(self) -> dict:
        """What results.json records of it."""
        return super().metadata() | {"task": self.task, "prompts": self.prompts}

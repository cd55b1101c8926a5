"""CoOp (Zhou et al., arXiv 2109.01134): the words around the class name are learned, all else is frozen."""

from torch import Tensor

from dassl.config import Key
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.precision import precision_key
from dassl.utils import UserError
from mergetune.clip_trainer import ClipTrainer
from mergetune.models.prompts import POSITIONS, PromptLearner, context_words, word_context


@TRAINER_REGISTRY.register()
class CoOp(ClipTrainer):
    """Cross-entropy on the learned prompt."""

    CONFIG = "COOP"
    model_name = "prompt_learner"  # the checkpoint's folder
    held_keys = ("TRAINER.COOP.CLASS_TOKEN_POSITION",)
    learns_prompts = True
    # keys of the released yamls that only stage 2 reads
    ALIASES = {
        "TRAINER.COOP.LOSS_TYPE": "TRAINER.LMC.DISTANCE",
        "TRAINER.COOP.W_LMC": "TRAINER.LMC.BETA",
        "TRAINER.COOP.NUM_SAMPLES": "TRAINER.LMC.NUM_SAMPLES",
        "TRAINER.COOP.COOP_LMC": "TRAINER.LMC.ENABLED",
    }

    KEYS = {
        "N_CTX": Key(16, "context vectors", ge=1),
        "CSC": Key(False, "one context a class"),
        "CTX_INIT": Key(False, 'False: random; True: "a photo of a"; or any words, which set N_CTX', also=str),
        "CLASS_TOKEN_POSITION": Key("end", "of the class name among the words", choices=POSITIONS),
        "PREC": precision_key("amp"),
        "W": Key(8.0, "KgCoOp: weight of the distance to zero-shot CLIP", ge=0, role="training"),
    }

    def build_trained(self) -> PromptLearner:
        """The learner, at its initial context."""
        settings = self.cfg.TRAINER.COOP
        return PromptLearner(
            self.clip,
            self.classnames,
            n_ctx=settings.N_CTX,
            words=context_words(settings.CTX_INIT),
            class_specific=settings.CSC,
            position=settings.CLASS_TOKEN_POSITION,
        )

    def text_features(self) -> Tensor:
        """Raw class vectors (C, D) of the prompt."""
        return self.clip.encode_text_from_embeddings(self.model(), self.model.tokens, self.model.shared)

    @property
    def bound_to_classes(self) -> str:
        return "its prompts are class-specific (TRAINER.COOP.CSC)" if self.cfg.TRAINER.COOP.CSC else ""

    def zero_shot_weights(self) -> dict[str, Tensor]:
        """w1: the embeddings of CTX_INIT's words."""
        if not self.model.words:
            raise UserError(
                "The zero-shot end of a prompt is the embedding of CTX_INIT's words, but CTX_INIT is False "
                "(random context): set TRAINER.COOP.CTX_INIT, or SPACE features with TAU 1"
            )
        return {"ctx": word_context(self.clip, self.model.words).float().expand_as(self.model.ctx).clone()}

    def zero_shot_prompt(self, space: str) -> str:
        """Between weights the path starts at CTX_INIT's words, around the class name as the prompt has it."""
        words = (self.model.words or "").split()
        if space == "features" or not words:
            return super().zero_shot_prompt(space)
        places = {"end": len(words), "middle": self.model.n_ctx // 2, "front": 0}
        place = places[self.cfg.TRAINER.COOP.CLASS_TOKEN_POSITION]
        return f"{' '.join([*words[:place], '{}', *words[place:]])}."

    def metadata(self) -> dict:
        words = self.model.words or f"{self.model.n_ctx} random vectors"
        return super().metadata() | {"templates": f"learned prompt, from {words!r}"}

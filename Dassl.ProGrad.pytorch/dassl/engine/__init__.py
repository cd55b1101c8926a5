"""Trainers: the base classes, the registry, and `launch.run`, which runs a config from start to results."""

from dassl.utils.late import late_imports

__getattr__, __dir__, __all__ = late_imports(
    __name__,
    build="TRAINER_REGISTRY add_trainer_nodes build_trainer trainer_class",
    config="build_config full_config load_config read_run_cfg",
    da="SourceOnly",
    dg="Vanilla",
    precision="Precision",
    ssl="FixMatch SupBaseline",
    trainer="SimpleNet SimpleTrainer TrainerBase TrainerX TrainerXU",
)

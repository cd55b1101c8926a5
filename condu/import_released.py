"""Session folders of the released ConDU code as a stream: `python -m condu.import_released FOLDER ... --to STREAM`."""

from condu.orders import ORDERS
from dassl.utils import ArgumentParser, UserError, command_parser, get_logger, read_json
from dassl.utils.late import late_imports
from dassl.utils.torchrun import run_command

__getattr__, *_ = late_imports("condu", released="fused import_released stream_of trained")
log = get_logger()

EPILOG = """\
FILE of --classes is JSON: {"DTD": ["banded", ...], ...} or {"DTD": {"classnames": [...], "prompts": [...]}, ...},
in the order of the labels. Several folders become the sessions of one stream, all kept.

A stream of the released LoRA can be fused further and measured, but not run: its adapters start from random
values that only pretrained.pth has.

example:
  python -m condu.import_released ckpt/session_10 --to output/released/stream --order I --classes classes.json
"""


def build_parser() -> ArgumentParser:
    about = "Make a stream of the session folders that the released ConDU code wrote."
    parser = command_parser("condu.import_released", about, EPILOG)
    add = parser.add_argument
    add("folders", type="path", nargs="+", metavar="FOLDER", help="session_<t> of the released code")
    add("--to", type="path", required=True, metavar="STREAM", help="the folder to write")
    add("--order", required=True, help="order of learning: I, II, or task names with commas")
    add("--classes", type="path", required=True, metavar="FILE", help="class names of each task, its prompts if known")
    add("--backbone", default="ViT-B/16", metavar="NAME", help="the pretrained CLIP (default: %(default)s)")
    add("--weights", type="path", default="", metavar="FILE", help="its weights, where NAME alone does not find them")
    add("--half", action="store_true", help="unified delta as bf16, half as large")
    return parser


def main(argv: list[str] | None = None):
    """Entry point -> the last Stream; bad input ends with one line on stderr and exit code 1."""
    args = build_parser().parse_args(argv)
    from condu.released import import_released
    from dassl.clip import build_clip

    order = ORDERS.get(args.order) or args.order.split(",")
    classes = read_json(args.classes)
    if not isinstance(classes, dict):
        raise UserError(f'"{args.classes}" holds a {type(classes).__name__}, expected {{task: class names}}')
    clip = build_clip(args.backbone, path=args.weights)
    stream = import_released(args.folders, args.to, order, classes, clip, args.half)
    log.info(f"Wrote {args.to}: {len(stream.tasks)} tasks, {', '.join(stream.names())}")
    return stream


if __name__ == "__main__":
    run_command(main)

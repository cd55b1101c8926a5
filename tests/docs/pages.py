"""Every command, file and example of README and docs, typed into one shell a page from a fresh checkout.

bash tests/run.sh --docs [-k PAGE]: two pages at a time, the longest first; short by EXTRA_OPTS and small data alone.
A test process begins with its half of the list and takes over the end of another's: the longest page has the short ones
behind it, the other half is of long ones.
"""

import json
import re

import pytest

from dassl.utils.files import locked
from tests.docs.typed import INSTEAD, plain, typed_of
from tests.fixtures.checkout import SMALL, TOY, check_out, commands_of, type_in, write_data, write_foreign
from tests.fixtures.pages import BLOCK, PAGES, files_to_write, table, ticked

LONG = ("reproduce", "continual", "methods", "README", "costs", "own_data", "benchmark", "scale", "trainer")
LONGEST, *OTHERS = (f"{name}.md" for name in LONG)
ON_TOYS = ("costs.md", "migrate.md", "trainer.md")  # all of their commands
# what a page says that its commands leave
LEAVES = {
    "README.md": ["output/tables/base2new.csv", "output/figures/change_CoOp_LMC_paper*.png"],
    "methods.md": ["output/ties/eval_base", "output/ties/eval_new", "classes.safetensors"],
    "reproduce.md": ["output/report.html"],
}


@pytest.fixture(scope="session")
def data(toy_data):
    """One data root for both test processes, so that each toy data set is drawn once."""
    with locked(toy_data / ".pages.lock", lambda: None):
        if not (whole := toy_data / ".pages").exists():
            write_data(toy_data)
            whole.touch()
    return toy_data


@pytest.fixture(scope="session")
def features(tmp_path_factory):
    """The feature banks of all pages."""
    return tmp_path_factory.mktemp("docs_features")


def test_what_runs_in_the_place_of_a_command_is_of_a_page():
    documented = {plain(c) for text in PAGES.values() for kind, body in BLOCK.findall(text)
                  if kind == "bash" for c in commands_of(body)}  # fmt: skip
    assert not INSTEAD.keys() - documented
    assert all(why for _, why in INSTEAD.values())


@pytest.mark.parametrize("page", [LONGEST, *sorted(PAGES.keys() - {LONGEST, *OTHERS}), *OTHERS])
def test_page(page, data, features, tmp_path):
    folder = check_out(tmp_path / "clone", data)
    write_foreign(folder)
    (folder / "output").mkdir()
    (folder / "output" / "features").symlink_to(features, target_is_directory=True)
    commands = typed_of(page)
    for name, content in files_to_write(PAGES[page]).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
        if name.endswith(".py"):
            commands.insert(0, f"python -W error -c 'import {name.removesuffix('.py').replace('/', '.')}'")
    typed = type_in(folder, commands, TOY if page in ON_TOYS else SMALL)
    for entry in typed:
        print(f"{entry.seconds:6.1f} s  {entry.status}  {' '.join(entry.command.split())[:150]}")
    failed = [f"$ {entry.command}\n{entry.output[-3000:]}" for entry in typed if entry.status]
    assert not failed, "\n\n".join(failed)
    assert not [name for name in LEAVES.get(page, ()) if not any(folder.glob(name))]
    if page == "costs.md":
        for name, size in table(page, "file, built-in CLIP, ToyDigits"):
            assert (folder / ticked(name)[0]).stat().st_size == pytest.approx(int(size.replace(",", "")), rel=0.02)


def test_torchrun_and_a_finished_folder(data, tmp_path):
    """As scale.md has it. A finished run is refused in one line by the main process, and nobody waits for another."""
    folder = check_out(tmp_path / "clone", data)
    line = "torchrun --standalone --nproc_per_node 2 train.py --root data --seed 1 --trainer CoOp"
    line += " --output-dir output/pair --dataset-config-file configs/datasets/oxford_pets.yaml"
    line += " --config-file configs/trainers/CoOp/vit_b16_ep100_ctxv1.yaml"
    trained, refused = type_in(folder, [line, line], SMALL)
    assert (trained.status, refused.status) == (0, 1), trained.output + refused.output
    assert json.loads((folder / "output" / "pair" / "results.json").read_text())["processes"] == 2
    errors = [line for line in refused.output.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "holds a finished run" in errors[0]
    assert not re.findall(r'File ".*(dassl|train\.py).*"', refused.output)

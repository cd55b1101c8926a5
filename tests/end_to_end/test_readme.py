"""What README and docs say is there: files, flags and names. The commands themselves: test_docs.py."""

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

from datasets.toy.world import WORLD
from scripts.plans import PROTOCOLS, find_pair
from scripts.sweep import read_sweep
from tests.conftest import ROOT, write_image
from tests.fixtures.image_folders import config
from tests.fixtures.pages import PAGES, blocks, files_to_write, shell_lines, table, ticked

README = PAGES["README.md"]
TEXT = "\n".join(PAGES.values())


def test_every_file_that_the_architecture_names_exists():
    text = PAGES["architecture.md"]
    named = set(re.findall(r"(?<![\w./*<-])((?:[\w.-]+/)+(?:[\w.-]+\.\w+)?|\w+\.(?:py|sh))(?=[\s`,;:)])", text))
    places = (ROOT, ROOT / "Dassl.ProGrad.pytorch")
    assert len(named) > 40
    assert not [name for name in named if not any((place / name).exists() for place in places)]


def test_every_script_it_names_exists_and_takes_those_arguments(clone):
    scripts = [line for line in shell_lines(README + PAGES["reproduce.md"]) if line.startswith("bash scripts/")]
    assert len(scripts) >= 5
    for line in scripts:
        if "my_birds" not in line:
            assert clone(*shlex.split(line), DRY_RUN="1").stdout.startswith(("python train.py ", "python -m scripts."))


def test_what_one_may_want_is_a_command_of_the_page_that_it_links():
    section = README.split("## I want to ...")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ") and "`" in line]
    assert len(rows) == 10
    for _, command, pages in rows:
        (start,) = ticked(command)
        linked = re.findall(r"docs/(\w+\.md)", pages)
        assert any(line.startswith(start) for page in linked for line in shell_lines(PAGES[page])), start


def test_every_link_of_the_pages_leads_to_a_heading_or_a_file():
    for page, text in PAGES.items():
        folder = ROOT if page == "README.md" else ROOT / "docs"
        for name, part in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([\w-]+))?\)", text):
            file = (folder / name).resolve() if name else folder / page
            assert file.exists(), (page, name)
            if part:
                assert part in anchors(file.read_text()), (page, name, part)


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in re.findall(r"^#+ (.+)$", text, re.M)}


def test_a_term_stands_once_in_the_glossary():
    terms = [term for names, _ in table("glossary.md", "term") for term in names.split(", ")]
    assert len(terms) > 40 and len(set(terms)) == len(terms)


def test_every_config_it_names_exists():
    names = re.findall(r"configs/[\w/.]+\.yaml", TEXT)
    written = files_to_write(TEXT)  # that a page tells to write
    assert names and all((ROOT / name).is_file() for name in names if name not in written)


@pytest.mark.parametrize("name", ["ensemble", "import_checkpoint", "merge", "path_card", "predict", "report"])
def test_every_module_it_names_has_those_flags(name, capsys):
    lines = [line.split() for line in shell_lines(TEXT) if line.startswith(f"python -m mergetune.{name} ")]
    with pytest.raises(SystemExit, match="^0$"):
        importlib.import_module(f"mergetune.{name}").main(["--help"])
    known = capsys.readouterr().out
    assert lines
    assert not [word for line in lines for word in line if word.startswith("--") and word not in known]


def test_every_sweep_and_job_it_names_is_known():
    for line in shell_lines(TEXT):
        if line.startswith("python scripts/sweep.py"):
            assert read_sweep(ROOT / line.split()[2]).cells
        if line.startswith("bash train.sh") and "--trainer" in line:
            assert find_pair(line.split("--trainer")[1].split()[0])
        if line.startswith("bash train.sh") and "--protocol" in line:
            assert line.split("--protocol")[1].split()[0] in PROTOCOLS


def test_its_data_set_is_one_class(tmp_path):
    code = next(block for block in blocks(README, "python") if "FewShotDataset" in block)
    scope: dict = {}
    exec(code, scope)
    split = {part: [] for part in ("train", "val", "test")}
    for label, bird in enumerate(["crow", "robin", "wren"]):
        for part in split:
            write_image(tmp_path / "my_birds" / "images" / f"{bird}_{part}.png", label)
            split[part].append([f"{bird}_{part}.png", label, bird])
    (tmp_path / "my_birds" / "split_zhou_MyBirds.json").write_text(json.dumps(split))
    birds = scope["MyBirds"](config(tmp_path, "MyBirds", DATASET__NUM_SHOTS=1, DATASET__SUBSAMPLE_CLASSES="base"))
    assert birds.classnames == ["crow", "robin"]
    assert birds.template == "a photo of a {}, a type of bird."


def test_both_commands_and_both_papers_are_named():
    for needed in ("bash train.sh", "bash tests/run.sh", "2601.10497", "2503.10705", "pip install -e ."):
        assert needed in README


@pytest.mark.parametrize("toy", [toy.folder for toy in WORLD.values()])
def test_each_toy_set_has_its_yaml(toy):
    assert Path(ROOT, "configs", "datasets", f"{toy}.yaml").is_file()

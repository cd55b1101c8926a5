"""Readers: from a folder on disk to (train, val, test) lists of Datum.

Each looks at a folder once, by one listing, and never at single files. Listings are sorted, and hidden files
are skipped, so that the lists are the same on every machine.
"""

import os
from collections.abc import Callable, Container, Iterable

from dassl.data.datasets import Datum
from dassl.utils import MissingFile, UserError, brief, listdir_nohidden, read_json, read_text
from dassl.utils.images import IMAGE_SUFFIXES

PARTS = ("train", "val", "test")
Lists = tuple[list[Datum], list[Datum], list[Datum]]


def split_json(path: str, image_dir: str) -> Lists:
    """CoOp's split file: {"train": [[relative path, label, class name], ...], "val": [...], "test": [...]}.

    UserError if the file does not have that form; MissingFile if images are missing below `image_dir`.
    """
    tree = read_json(path)
    if not isinstance(tree, dict) or any(not isinstance(tree.get(part), list) for part in PARTS):
        raise UserError(f"{path} is no split file: expected an object with the lists train, val and test")
    for part in PARTS:
        for position, item in enumerate(tree[part]):
            where = f"{path}: {part}[{position}]"
            if not isinstance(item, list) or list(map(type, item)) != [str, int, str]:
                raise UserError(f"{where} is {brief(item)}; expected [relative path, label, class name]")
            if os.path.isabs(item[0]) or ".." in item[0].split("/"):
                raise UserError(f"{where}: path {item[0]!r} leaves the image folder")
    check_files(image_dir, (item[0] for part in PARTS for item in tree[part]), path)
    return tuple([_datum(image_dir, *item) for item in tree[part]] for part in PARTS)


def _datum(image_dir: str, path: str, label: int, name: str) -> Datum:
    return Datum.listed(f"{image_dir}/{path}", label=label, classname=name)


def check_files(image_dir: str, paths: Iterable[str], source: str) -> None:
    """MissingFile, whose `count` says how many, unless every path is below image_dir; one listing a folder.

    source: who names the paths.
    """
    folders: dict[str, set[str]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        folders.setdefault(folder, set()).add(name)
    total = sum(map(len, folders.values()))
    missing = []
    for folder, wanted in folders.items():
        place = os.path.join(image_dir, folder)
        wanted = wanted.difference(os.listdir(place) if os.path.isdir(place) else ())
        missing += [os.path.join(folder, name) for name in wanted]
    if missing:
        error = MissingFile(
            f"{len(missing)} of the {total} images that {source} names are not below {image_dir}: "
            f"{min(missing)}{', ...' if len(missing) > 1 else ''}"
        )
        error.count = len(missing)
        raise error


def listed(image_dir: str, items: Iterable[tuple[str, int, str]], source: str) -> list[Datum]:
    """Items (relative path, label, class name) as Datum. MissingFile unless all images are there.

    source: who names the paths.
    """
    items = list(items)
    check_files(image_dir, (path for path, _, _ in items), source)
    return [_datum(image_dir, *item) for item in items]


def read_listing(source: str, image_dir: str, item: Callable[[str], tuple[str, int, str]], form: str) -> list[Datum]:
    """The images that the lines of a text file name. item: gives a line's (relative path, label, class name).

    UserError, which says the `form` of a line, for one that `item` cannot read or whose class it does not know.
    """
    items = []
    for line in map(str.strip, read_lines(source)):
        try:
            items.append(item(line))
        except (KeyError, IndexError, ValueError):
            raise UserError(f"{source}: line {line!r}; expected {form}") from None
    return listed(image_dir, items, source)


def variant_lists(folder: str, image_dir: str) -> Lists:
    """FGVC Aircraft: variants.txt (names by label), images_variant_{train,val,test}.txt ("id name" lines)."""
    label_of = {name: label for label, name in enumerate(read_lines(os.path.join(folder, "variants.txt"), once=True))}

    def item(line: str) -> tuple[str, int, str]:
        image, name = line.split(" ", 1)
        return f"{image}.jpg", label_of[name], name

    sources = [os.path.join(folder, f"images_variant_{part}.txt") for part in PARTS]
    return tuple(read_listing(source, image_dir, item, "an image and a line of variants.txt") for source in sources)


def wordnet_names(path: str) -> dict[str, str]:
    """classnames.txt: "n01440764 tench" a line, with blanks or a tab between, as {folder: class name}.

    UserError: a line without a name, or a folder that has two lines.
    """
    names: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            folder, *name = line.split(None, 1)
            if not name or folder in names:
                what = "stands there twice" if name else "has no name"
                raise UserError(f"{path}, line {number}: {brief(folder)} {what}; expected folders and their names")
            names[folder] = name[0].strip()
    return names


def read_names(path: str) -> dict[str, str]:
    """A JSON file {class: its name in prompts}. UserError: another one."""
    names = read_json(path)
    if not isinstance(names, dict) or not all(isinstance(name, str) and name for name in names.values()):
        raise UserError(f'{path}: expected {{"class": "name in prompts", ...}}')
    return names


def class_folders(root: str, names: Container[str] | None = None, source: str = "classnames.txt") -> list[str]:
    """The class folders of `root`, sorted. UserError if there is none, or one that `names` (of `source`) lacks."""
    with os.scandir(root) as entries:
        folders = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not folders:
        raise UserError(
            f"{root} has no class folders; images must be sorted into one folder a class, such as n01440764"
        )
    unnamed = [name for name in folders if names is not None and name not in names]
    if unnamed:
        raise UserError(f"{root}: {len(unnamed)} folders are not in {source}: {unnamed[0]}, ...")
    return folders


def folder_images(root: str, folders: list[str], names: dict[str, str], others: list[str] | None = None) -> list[Datum]:
    """All images of the class folders of `root`, sorted; the label is the folder's place in the list.

    others: takes up the paths below `root` of what lies there beside, hidden files apart.
    """
    items = []
    for label, folder in enumerate(folders):
        path = f"{root}/{folder}"
        there = listdir_nohidden(path, sort=True)
        images = [name for name in there if name.lower().endswith(IMAGE_SUFFIXES)]
        beside = [f"{folder}/{name}" for name in sorted(set(there).difference(images))]
        if not images:
            raise UserError(f"{path} holds no images" + (f", but {len(beside)} others: {beside[0]}" if beside else ""))
        items += [_datum(path, name, label, names[folder]) for name in images]
        if others is not None:
            others += beside
    return items


def read_lines(path: str, *, once: bool = False) -> list[str]:
    """The lines of a text file that are not blank. once: UserError for one that stands there twice."""
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    if once and len(set(lines)) < len(lines):
        raise UserError(f"{path}: {next(line for line in lines if lines.count(line) > 1)!r} stands there twice")
    return lines

"""What the README claims about files, functions, targets and keys is so."""
import pathlib
import re
import subprocess

import pytest

from engine import BUILD, ROOT

README = (ROOT / "README.md").read_text()


def test_readme_hop_table_names_functions_that_are_there():
    pairs = re.findall(r"`((?:services|common)/[\w/]+\.c)` `(\w+)`", README)
    assert len(pairs) >= 20
    for path, function in pairs:
        assert re.search(rf"^[a-z].*\b{function}\(", (ROOT / path).read_text(), re.M), (path, function)


def test_readme_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text() + "".join(p.read_text() for p in ROOT.glob("*.mk"))
    targets = set(re.findall(r"`?make ([a-z]+)", README))
    assert {"run", "test", "check", "tsan", "fuzz"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_readme_folders_and_links_exist():
    for name in re.findall(r"\]\(([^)#]+)\)", README):
        assert name.startswith("http") or (ROOT / name).exists(), name
    for folder in ("services", "common", "schemas", "kernels", "deploy", "tools", "tests"):
        assert f"`{folder}/" in README


def test_readme_settings_are_known_keys():
    known = subprocess.run([str(BUILD / "quintet"), "config", "keys"], capture_output=True, text=True, check=True).stdout
    keys = set(re.findall(r"--set ([a-z_]+\.[a-z_]+)=", README))
    assert keys
    for key in keys:
        assert key in known, key


def test_readme_has_no_unfilled_place():
    assert not re.search(r"@[A-Z_]+@", README)


SERVICES = [f"services/{name}" for name in ("frontend", "tokenizer", "scheduler", "memory", "compute")]


@pytest.mark.parametrize("folder", [*SERVICES, "common", "deploy", "kernels", "schemas", "tools", "tests", "tests/fuzz",
                                    "tests/golden"])
def test_readme_of_each_folder_names_files_that_are_there(folder):
    text = (ROOT / folder / "README.md").read_text()
    names = re.findall(r"`([\w./*-]+\.(?:[ch]|cu|cuh|py|sh|md))`", text)
    for name in names:
        near = list((ROOT / folder).rglob(name)) if not name.startswith("../") else [(ROOT / folder / name).resolve()]
        places = near or [path for depth in ("", "*/", "*/*/") for path in ROOT.glob(depth + name)]
        assert any(path.exists() for path in places), (folder, name)

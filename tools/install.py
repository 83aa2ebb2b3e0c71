#!/usr/bin/env python3
"""Installs what this checkout has built into the system, and takes exactly that away again.

PREFIX/lib/omfs becomes a Python environment of our own: the packages that the programs need, in the locked versions
and as they were tested in .venv, the project itself, and the private CRIU where there is one.  So nothing is fetched
or compiled here, and the checkout may go afterwards.  Around it: links in PREFIX/bin (what users call) and PREFIX/sbin,
mount(8)'s helpers in /sbin, units, man pages and completions where there are any.  A list of all that lies in
PREFIX/lib/omfs/installed.txt; the next installation and `--remove` go by it, and nothing of anybody else is touched.

Called by `make install` (with .venv's interpreter) and `make uninstall` (with any), as root; DESTDIR is for packagers.
"""

from __future__ import annotations

import argparse
import compileall
import importlib.metadata
import os
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
OURS = ("omfs", "dfsa", "mignode")
LIST = "installed.txt"
UNITS_PREFIX = "/usr/local"  # what the units in systemd/ name
UNIT_PLACES = ("/usr", "/usr/local")  # systemd looks for units in lib/systemd/system of these
SCRIPT = "#!{python}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n"


def give_up(text: str) -> NoReturn:
    print(f"install: {text}", file=sys.stderr)
    raise SystemExit(1)


def declared() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


class Installation:
    """Where everything goes: below *destdir*, but so that it works as *prefix* without it.

    *build*: where tools/manuals.py has written.
    """

    def __init__(self, prefix: Path, destdir: Path, build: Path) -> None:
        self.prefix, self.destdir, self.build = prefix, destdir, build
        self.home = prefix / "lib" / "omfs"
        self.helpers = Path("/usr/sbin" if Path("/sbin").is_symlink() else "/sbin")  # mount(8) looks in /sbin

    def at(self, path: Path) -> Path:
        """Where *path* is while we install."""
        return self.destdir / path.relative_to("/")

    # ------------------------------------------------------------ what there is to install

    def scripts(self) -> dict[str, str]:
        return {str(name): str(target) for name, target in declared()["project"]["scripts"].items()}

    def links(self) -> dict[Path, str]:
        """Every link and what it points to; relative, so that a tree in DESTDIR is whole in itself."""
        links = {}
        administrators = declared()["tool"]["omfs"]["administrators"]  # users have no use for them
        for name in self.scripts():
            if name.startswith(("mount.", "umount.")):
                folder = self.helpers
            else:
                folder = self.prefix / ("sbin" if name in administrators else "bin")
            links[folder / name] = os.path.relpath(self.home / "bin" / name, folder)
        return links

    def texts(self) -> dict[Path, bytes]:
        """Every file outside of `home` and what is in it."""
        units = self.prefix / "lib/systemd/system"
        texts = {}
        for unit in sorted((ROOT / "systemd").glob("*.*")):
            text = unit.read_text().replace(f"={UNITS_PREFIX}/", f"={self.prefix}/")
            texts[units / unit.name] = text.encode()
        share = self.prefix / "share"
        for page in sorted((self.build / "man").glob("*.[1-8]")):
            texts[share / f"man/man{page.suffix[1:]}" / page.name] = page.read_bytes()
        for shell, place in (("bash", "bash-completion/completions"), ("zsh", "zsh/site-functions")):
            for file in sorted(path for path in (self.build / "completion" / shell).glob("*") if path.is_file()):
                texts[share / place / file.name] = file.read_bytes()
        return texts

    # ------------------------------------------------------------ doing it

    def install(self) -> None:
        links, texts = self.links(), self.texts()
        before = self.listed()
        self._take_back_links()
        for path in [*links, *texts]:
            if os.path.lexists(self.at(path)) and path not in before:
                give_up(f"{self.at(path)} exists and is not ours; move it away, then repeat")
        home = self.at(self.home)
        if home.exists() and not (home / LIST).exists():
            give_up(f"{home} exists and is not ours; move it away, then repeat")
        made = [path for path in before if self.at(path).is_dir() and not self.at(path).is_symlink()]
        made += [path for path in self._make_folders([self.home, *links, *texts]) if path not in made]
        fresh = home.with_name("omfs.new")
        shutil.rmtree(fresh, ignore_errors=True)  # of an installation that was cut short
        self._make_environment(fresh)
        (fresh / LIST).write_text("".join(f"{path}\n" for path in [*links, *texts, *made]))
        stale = home.with_name("omfs.old")
        shutil.rmtree(stale, ignore_errors=True)
        if home.exists():
            home.rename(stale)
        fresh.rename(home)
        shutil.rmtree(stale, ignore_errors=True)
        for path in before:
            if path not in links and path not in texts and path not in made:
                self.at(path).unlink(missing_ok=True)
        for path, target in links.items():
            self.at(path).unlink(missing_ok=True)
            self.at(path).symlink_to(target)
        for path, text in texts.items():
            self.at(path).unlink(missing_ok=True)
            self.at(path).write_bytes(text)
            self.at(path).chmod(0o644)
        print(f"==> installed in {home}: {len(links)} commands, {len(texts)} other files")
        if str(self.prefix) not in UNIT_PLACES:
            print(f"==> systemd does not look below {self.prefix}: systemctl link {self.prefix}/lib/systemd/system/*")

    def remove(self) -> None:
        home, listed = self.at(self.home), self.listed()
        if not listed:
            print(f"==> nothing is installed in {home}")
            return
        folders = [path for path in listed if self.at(path).is_dir() and not self.at(path).is_symlink()]
        for path in listed:
            if path not in folders:
                self.at(path).unlink(missing_ok=True)
        shutil.rmtree(home)
        for folder in sorted(folders, reverse=True):
            if not os.listdir(self.at(folder)):  # what others have put there since is theirs
                self.at(folder).rmdir()
        print(f"==> removed {home} and {len(listed) - len(folders)} files around it")

    def _take_back_links(self) -> None:
        """Those into this checkout, which `make install` made once: they would be found before what it makes now."""
        for folder in (self.prefix / "bin", self.prefix / "sbin", self.helpers, Path("/etc/systemd/system")):
            for path in self.at(folder).glob("*"):
                if path.is_symlink() and path.readlink().is_relative_to(ROOT):
                    path.unlink()

    def listed(self) -> list[Path]:
        """What the installation that is there has put outside of `home`, folders that it had to make included."""
        try:
            lines = (self.at(self.home) / LIST).read_text().splitlines()
        except FileNotFoundError:
            return []
        return [Path(line) for line in lines]

    def _make_folders(self, paths: list[Path]) -> Iterator[Path]:
        """Those of the folders of *paths* that were not there."""
        for path in paths:
            for folder in reversed(path.parents[:-1]):
                if not self.at(folder).is_dir():
                    self.at(folder).mkdir(mode=0o755, parents=True)
                    self.at(folder).chmod(0o755)
                    yield folder

    # ------------------------------------------------------------ the environment

    def _make_environment(self, fresh: Path) -> None:
        """What `python -m venv` makes and pip fills, from what .venv has."""
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        packages = fresh / "lib" / version / "site-packages"
        packages.mkdir(parents=True)
        (fresh / "bin").mkdir()
        base = Path(sys.base_prefix, "bin", version)
        (fresh / "bin/python3").symlink_to(base)
        release = ".".join(map(str, sys.version_info[:3]))
        (fresh / "pyvenv.cfg").write_text(
            f"home = {base.parent}\ninclude-system-site-packages = false\nversion = {release}\n"
        )
        for distribution in needed_distributions():
            copy_distribution(distribution, packages)
        for name in OURS:
            shutil.copytree(ROOT / name, packages / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name, target in self.scripts().items():
            module, _, function = target.partition(":")
            script = fresh / "bin" / name
            script.write_text(SCRIPT.format(python=self.home / "bin/python3", module=module, function=function))
            script.chmod(0o755)
        if Path(sys.prefix, "criu").is_dir():
            shutil.copytree(Path(sys.prefix, "criu"), fresh / "criu", symlinks=True)
        final = self.home / packages.relative_to(fresh)
        compileall.compile_dir(packages, quiet=2, stripdir=str(packages), prependdir=str(final))


def needed_distributions() -> list[importlib.metadata.Distribution]:
    """What the project needs to run, and what that needs, of what .venv has; without what is for development."""
    from packaging.requirements import Requirement  # .venv has it; who only removes needs none

    wanted = [Requirement(text) for text in declared()["project"]["dependencies"]]
    found: dict[str, importlib.metadata.Distribution] = {}
    while wanted:
        requirement = wanted.pop()
        extras = ["", *requirement.extras]
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            distribution = importlib.metadata.distribution(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            give_up(f"{requirement.name} is not in {sys.prefix}: run `make bootstrap`, then repeat")
        if distribution.metadata["Name"] in found:
            continue
        found[distribution.metadata["Name"]] = distribution
        for text in distribution.requires or ():
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                inner.marker = None
                wanted.append(inner)
    return list(found.values())


def copy_distribution(distribution: importlib.metadata.Distribution, packages: Path) -> None:
    """Its files as pip has listed them; not its commands, which are nobody's here."""
    for file in distribution.files or ():
        if ".." not in file.parts and file.suffix != ".pyc":
            target = packages / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(str(distribution.locate_file(file)), target)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prefix", type=Path, default=Path(UNITS_PREFIX), help="default: %(default)s")
    parser.add_argument("--destdir", type=Path, default=Path("/"), help="install below it, to be moved to / later")
    parser.add_argument(
        "--build", type=Path, default=ROOT / "build", help="with man pages and completions, as manuals.py writes them"
    )
    parser.add_argument("--remove", action="store_true", help="take everything away again")
    arguments = parser.parse_args()
    if not arguments.prefix.is_absolute() or not arguments.destdir.is_absolute():
        give_up("PREFIX and DESTDIR must be absolute paths, as in PREFIX=/usr/local")
    os.umask(0o022)
    installation = Installation(arguments.prefix, arguments.destdir, arguments.build)
    try:
        installation.remove() if arguments.remove else installation.install()
    except OSError as error:
        give_up(f"{error.filename}: {error.strerror}; mend that, then repeat")


if __name__ == "__main__":
    main()

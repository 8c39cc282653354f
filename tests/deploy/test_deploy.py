"""Goal: image, compose file, units and first start fit this checkout, and the private key is the sweeper's alone."""

import asyncio
import configparser
import os
import re
import shutil
import stat
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from app.blockchain.keystore import read_keystore
from app.blockchain.wallet import account_xpub
from app.core.config import Settings
from app.core.secret_files import FROM_FILES
from app.services.wallet import new_wallet, store_wallet, wallet_of
from deploy import first_start

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
Folders = tuple[Path, Path, Path, Path]
OURS = {name: service for name, service in COMPOSE["services"].items() if service["image"] == "paywatch"}


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = (tmp_path / "shared", tmp_path / "api", tmp_path / "sweeper", tmp_path / "database")
    for folder in made:
        folder.mkdir()
    return made


def contents(*folders: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for folder in folders for path in folder.iterdir()}


def test_a_first_start_makes_what_every_process_needs(folders: Folders) -> None:
    shared, api, sweeper, database = folders
    first_start.main(*folders)
    words = read_keystore(sweeper / "keystore.json", (sweeper / "keystore_password").read_text().strip())
    assert account_xpub(words) == (api / "xpub").read_text().strip()
    assert (database / "password").read_text().strip() in (shared / "database_url").read_text()
    Settings(database_url=(shared / "database_url").read_text().strip(), secret_key=(shared / "secret_key").read_text())
    assert not any(words.encode() in text for text in contents(shared, api, database).values())
    for file in (*shared.iterdir(), *api.iterdir(), *sweeper.iterdir()):
        assert stat.S_IMODE(file.stat().st_mode) == 0o400


def test_a_second_start_changes_nothing(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    first_start.main(*folders)
    before, said = contents(*folders), capsys.readouterr().out
    first_start.main(*folders)
    assert contents(*folders) == before
    assert capsys.readouterr().out == ""
    secrets = [text.decode() for path, text in before.items() if not path.endswith(("xpub", "keystore.json"))]
    assert not [secret for secret in secrets if secret.strip() in said], "nothing secret is printed: logs are kept"


def test_a_first_start_that_was_killed_is_finished_by_the_next(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each of its writes in turn."""
    written = first_start._once
    for survived in range(6):
        left = iter(range(survived))

        def dying(path: Path, *arguments: Any, left: Any = left, **options: Any) -> str:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return written(path, *arguments, **options)

        monkeypatch.setattr(first_start, "_once", dying)
        with pytest.raises(KeyboardInterrupt):
            first_start.main(*folders)
    monkeypatch.setattr(first_start, "_once", written)
    test_a_first_start_makes_what_every_process_needs(folders)


def test_a_wallet_that_was_lost_is_not_replaced_by_another(
    folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    """Payments are watched meanwhile. What brings it back is what the first start says."""
    _, api, sweeper, _ = folders
    first_start.main(*folders)
    xpub = (api / "xpub").read_text()
    words = read_keystore(sweeper / "keystore.json", (sweeper / "keystore_password").read_text().strip())
    for file in list(sweeper.iterdir()):
        file.unlink()
    capsys.readouterr()
    first_start.main(*folders)
    assert not (sweeper / "keystore.json").exists()
    assert "paywatch keys init --words --keystore /run/sweeper/keystore.json" in capsys.readouterr().out
    password = (sweeper / "keystore_password").read_text().strip()
    store_wallet(wallet_of(words), sweeper / "keystore.json", SecretStr(password))
    first_start.main(*folders)
    assert capsys.readouterr().out == ""
    assert (api / "xpub").read_text() == xpub


def test_a_keystore_of_another_wallet_stops_the_start(folders: Folders) -> None:
    _, _, sweeper, _ = folders
    first_start.main(*folders)
    (sweeper / "keystore.json").unlink()
    password = (sweeper / "keystore_password").read_text().strip()
    store_wallet(new_wallet(), sweeper / "keystore.json", SecretStr(password))
    with pytest.raises(SystemExit, match="not the wallet of xpub"):
        first_start.main(*folders)


def test_a_database_keeps_the_password_that_its_url_has(folders: Folders) -> None:
    *_, database = folders
    first_start.main(*folders)
    before = (database / "password").read_text()
    (database / "password").unlink()
    first_start.main(*folders)
    assert (database / "password").read_text() == before


def test_each_service_has_the_volumes_that_it_needs_and_no_other() -> None:
    secret = ("secrets", "api-secrets", "sweeper-key", "database-password")
    mounts = {
        name: {volume.partition(":")[0] for volume in service.get("volumes", ())} & set(secret)
        for name, service in COMPOSE["services"].items()
    }
    assert {name: held for name, held in mounts.items() if held} == {
        "first-start": set(secret),
        "postgres": {"database-password"},
        "migrate": {"secrets"},
        "worker": {"secrets"},
        "api": {"secrets", "api-secrets"},
        "sweeper": {"secrets", "sweeper-key"},
    }


def test_the_private_key_is_the_sweepers_alone() -> None:
    holders = {name for name, service in OURS.items() if "PAYWATCH_KEYSTORE_FILE" in service.get("environment", ())}
    assert holders == {"sweeper"}
    assert OURS["first-start"]["network_mode"] == "none"
    assert "--roles sweeper" in " ".join(OURS["sweeper"]["command"])
    assert not any(
        "sweeper" in part for name, service in OURS.items() if name == "worker" for part in service["command"]
    )


def test_every_variable_of_the_compose_file_is_a_setting() -> None:
    known = {f"PAYWATCH_{name.upper()}" for name in Settings.model_fields}
    known |= {f"PAYWATCH_{name.upper()}_FILE" for name in FROM_FILES}
    for service in OURS.values():
        assert set(service.get("environment", ())) <= known
    assert "PAYWATCH_HOST" in known


def test_every_service_is_pinned_restarted_watched_and_as_small_as_can_be() -> None:
    for name, service in COMPOSE["services"].items():
        once = service.get("restart") == "no"
        assert once or service["restart"] == "unless-stopped", name
        assert service["image"] == "paywatch" or re.search(r":v?\d", service["image"]), f"{name}: an image of a version"
        for dependency in service.get("depends_on", ()):
            assert dependency in COMPOSE["services"]
        assert once or name in ("prometheus", "grafana") or "healthcheck" in service or name == "api", name
        for published in service.get("ports", ()):
            assert published.startswith("127.0.0.1:"), "a proxy with TLS stands before it"
    for service in OURS.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["tmpfs"] == ["/tmp"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "/health/live" in dockerfile[dockerfile.index("HEALTHCHECK") :], "that of the API is the image's"
    assert "USER paywatch" in dockerfile


def test_volumes_that_are_mounted_exist() -> None:
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert (ROOT / source).exists() if source.startswith("./") else source in COMPOSE["volumes"], source


async def test_what_the_image_holds_is_enough_to_run(tmp_path: Path) -> None:
    """The COPY lines into an empty folder, and there what compose runs."""
    copied = [line.split()[1:] for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("COPY ")]
    for *sources, target in (parts for parts in copied if not parts[0].startswith("--")):
        for source in sources:
            place = tmp_path / target / (Path(source).name if target.endswith("/") else "")
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, place)
    code = (
        "import app, migrate, server, sys; from app.blockchain import collector; from app.cli import app as cli;"
        "from app.workers import __main__ as workers; from importlib.metadata import packages_distributions;"
        f"assert app.__file__.startswith({str(tmp_path)!r}), app.__file__;"
        "code = migrate.main(['upgrade']) or migrate.main(['check']);"
        "tops = {name.partition('.')[0] for name in sys.modules}; of = packages_distributions();"
        "print('imported:', *{each for top in tops for each in of.get(top, ())});"
        "sys.exit(code)"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code),
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(tmp_path),
            "PAYWATCH_DATABASE_URL": "sqlite+aiosqlite:///x.db",
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    line = next(line for line in out.decode().splitlines() if line.startswith("imported: "))
    imported = {re.sub(r"[-_.]+", "-", name).lower() for name in line.split()[1:]} - {"paywatch"}
    shipped = {re.sub(r"\[.*", "", pin).partition("==")[0] for pin in pins("deploy/requirements.lock")}
    assert {"web3", "fastapi", "arq"} <= imported
    assert imported <= shipped


def pins(file: str) -> set[str]:
    return set(re.findall(r"^([a-z0-9][\w.\[\],-]*==[^\s;\\]+)", (ROOT / file).read_text(), re.MULTILINE))


def test_the_images_packages_are_those_of_the_tests() -> None:
    tested, shipped = pins("requirements.lock"), pins("deploy/requirements.lock")
    assert shipped <= tested
    assert not any(pin.startswith(("pytest", "mypy", "pixeltable")) for pin in shipped)
    assert any(pin.startswith("web3==") for pin in shipped)


@pytest.mark.skipif(sys.platform != "linux", reason="the tag of what was compiled here is Linux's")
def test_what_has_no_wheel_finds_a_compiler_in_the_images_first_stage_alone() -> None:
    """The slim image has none. What pip compiled here has a plain `linux_…` tag; a wheel from PyPI is `manylinux_…`."""
    shipped = {re.sub(r"\[.*", "", pin).partition("==")[0] for pin in pins("deploy/requirements.lock")}
    compiled = {
        each.name
        for each in distributions()
        if re.sub(r"[-_.]+", "-", each.name).lower() in shipped
        and re.search(r"^Tag: .*-linux_", each.read_text("WHEEL") or "", re.MULTILINE)
    }
    first, second = re.split(r"^FROM .*$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    compiler = re.compile(r"apt-get install\b.*\bgcc libc6-dev\b")
    assert compiled
    assert compiler.search(first[: first.index("uv pip sync")]), f"without it {compiled} cannot be installed"
    assert not compiler.search(second)


@pytest.mark.parametrize("unit", ["paywatch.service", "paywatch-worker@.service"])
def test_units_run_what_exists_as_nobody_special(unit: str) -> None:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(ROOT / "deploy" / "systemd" / unit)
    service = parser["Service"]
    assert "/opt/paywatch/server.py" in service["ExecStart"] or "-m app.workers --roles" in service["ExecStart"]
    assert (service["User"], service["ProtectSystem"], service["NoNewPrivileges"]) == ("paywatch", "strict", "yes")
    assert int(service["TimeoutStopSec"]) > 10, "a server ends by itself within 10 s"
    assert service["Restart"] == "always"
    assert parser["Unit"]["StartLimitIntervalSec"] == "0", "a database may be away for long"


def test_the_embedded_redis_is_where_the_doctor_finds_it() -> None:
    """Its socket is in the folder for temporary files, and another unit does not see a private /tmp."""
    unit = (ROOT / "deploy/systemd/paywatch.service").read_text()
    settings = re.findall(r"^(?:Environment|RuntimeDirectory|PrivateTmp)=.*$", unit, re.MULTILINE)
    assert {"PrivateTmp=yes", "RuntimeDirectory=paywatch", "Environment=TMPDIR=%t/paywatch"} <= set(settings)


def environment_files(folder: Path, *arguments: str) -> tuple[list[str], list[str]]:
    """Whose settings `paywatch-run` would give a command, and the command, by what it asks of systemd."""
    fake = folder / "systemd-run"
    fake.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    fake.chmod(0o755)
    answer = subprocess.run(
        [ROOT / "deploy/systemd/paywatch-run", *arguments],
        env={"PATH": f"{folder}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    asked = answer.stdout.splitlines()
    begins = asked.index("/bin/sh")
    assert {"--pty", "--pipe"} <= set(asked[:begins]), "both: a terminal where there is one, else a pipe"
    assert {"--uid=paywatch", "--working-directory=/var/lib/paywatch", "--property=UMask=0077"} <= set(asked[:begins])
    assert not [each for each in asked[:begins] if not each.startswith("--")], "options alone stand before a command"
    prefix = "--property=EnvironmentFile="
    return [each.removeprefix(prefix) for each in asked if each.startswith(prefix)], asked[begins + 4 :]


def test_a_command_has_the_sweepers_key_where_it_is_asked_for_and_nowhere_else(tmp_path: Path) -> None:
    """From the same file as the sweeper's unit, without which it does not start."""
    assert environment_files(tmp_path, "paywatch", "doctor") == (["/etc/paywatch/env"], ["paywatch", "doctor"])
    command = ["paywatch", "sweep", "--dry-run", "--chain", "a b"]
    files, given = environment_files(tmp_path, "--sweeper", *command)
    assert (files, given) == (["/etc/paywatch/env", "/etc/paywatch/env.sweeper"], command)
    unit = (ROOT / "deploy/systemd/paywatch-worker@.service").read_text()
    assert files == [
        each.lstrip("-").replace("%i", "sweeper") for each in re.findall(r"^EnvironmentFile=(.*)$", unit, re.MULTILINE)
    ]
    assert "paywatch-run --sweeper paywatch sweep --dry-run" in (ROOT / "docs/deploy.md").read_text()

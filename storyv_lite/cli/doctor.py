"""`storyv-lite doctor`: what this machine can run, and which optional packages are there."""

import platform
from importlib import metadata

from storyv_lite.bundle import find_bundle
from storyv_lite.cli.console import say, say_json
from storyv_lite.cli.options import JsonOption
from storyv_lite.errors import BundleError
from storyv_lite.memory import usable_cores

OPTIONAL = (
    "torch",
    "transformers",
    "diffusers",
    "skia-python",
    "onnx",
    "optimum",
    "bitsandbytes",
    "tensorrt",
    "tensorrt-rtx",
    "onnxruntime-ep-nv-tensorrt-rtx",
)


def doctor(as_json: JsonOption = False) -> None:
    """Show what this machine can run."""
    import onnxruntime

    from storyv_lite.runtime.backends import open_backend
    from storyv_lite.runtime.backends.providers import INSTALL, PROVIDERS, problem

    python, system = platform.python_version(), f"{platform.system()} {platform.machine()}"
    providers = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    versions = {name: _version(name) for name in OPTIONAL}
    say(f"python {python}, {system}, {usable_cores()} cores")
    say(f"onnxruntime {onnxruntime.__version__}, built with {', '.join(providers)}")
    backend = open_backend("auto")
    say(f"draws on {backend.device} ({backend.reason}), {backend.threads} threads")
    faults = {name: problem(name) for name in PROVIDERS}
    for name, fault in faults.items():
        say(f"provider {name}: {f'no, {fault} ({INSTALL[name]})' if fault else 'works'}")
    for name, version in versions.items():
        say(f"{name}: {version or 'not installed'}")
    if not versions["torch"]:
        say("to train and export: pip install 'storyv-lite[train,export]'")
    try:
        path, why = find_bundle()
        say(f"bundle: {path} ({why})")
    except BundleError as fault:
        say(f"bundle: {fault.message}")
    if as_json:
        chosen = {"device": backend.device, "reason": backend.reason}
        found = {"providers": providers, "faults": faults, "optional": versions}
        say_json({"python": python, "system": system, **found, **chosen})


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

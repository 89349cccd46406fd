"""`storyv-lite inspect`: what a bundle holds, checked file by file."""

from dataclasses import asdict
from typing import Annotated

import typer

from storyv_lite.bundle import Bundle, find_bundle
from storyv_lite.cli.console import say, say_json
from storyv_lite.cli.options import JsonOption
from storyv_lite.components import Component
from storyv_lite.coverage import lines, shares, summary
from storyv_lite.memory import format_bytes


def inspect(
    bundle: Annotated[
        str,
        typer.Argument(metavar="BUNDLE", help="Bundle folder or name; without it, as `render` chooses."),
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Check a bundle and show what it holds."""
    path, why = find_bundle(bundle or None)
    opened = Bundle.open(path)
    for component in Component:
        if not opened.components.get(component):
            opened.variant(component)  # tells, as drawing would
    dims = opened.model.dimensions
    sampler = opened.model.sampler
    say(f"{opened.name}: {path} ({why})")
    say(f"{format_bytes(opened.total_bytes)} on disk, every hash as in the manifest {opened.sha256[:12]}")
    say(f"draws {dims.image_size}x{dims.image_size} pixels; {len(opened.characters)} characters")
    say(f"{sampler.name}, {sampler.num_inference_steps} steps, guidance {sampler.guidance_scale:g}")
    say(f"{'component':<18} {'scheme':<14} {'backend':<8} {'size':>10}  parity")
    for component, variants in opened.components.items():
        for variant in variants:
            size = format_bytes(sum(part.bytes for part in variant.parts))
            parity = ", ".join(f"{key} {value}" for key, value in variant.parity.items()) or "not measured"
            say(f"{component:<18} {variant.scheme:<14} {variant.backend:<8} {size:>10}  {parity}")
    say("stories: " + (", ".join(f"{key} {value}" for key, value in opened.parity.items()) or "not measured"))
    for one in opened.degraded:
        say(f"degraded: {one.component} {one.metric} {one.value:.4g}, the limit is {one.limit:.4g}")
    for row in opened.mixture.get("layers", ()):
        say(f"  {row['bits']:>2} bits  {row['component']} {row['layer']}")
    weights = {name: variants[0].weights for name, variants in opened.components.items()}
    say(f"weights: {summary(weights.values()) or 'an older bundle, which does not say how they are stored'}")
    for name, entry in weights.items():
        for line in lines(entry):
            say(f"  {name}: {line}")
    for key, value in opened.provenance.items():
        say(f"{key}: {value}")
    if as_json:
        schemes = {
            name: [variant.scheme for variant in variants] for name, variants in opened.components.items()
        }
        say_json(
            {
                "bundle": str(path),
                "name": opened.name,
                "sha256": opened.sha256,
                "bytes": opened.total_bytes,
                "components": schemes,
                "mixture": dict(opened.mixture),
                "story_parity": dict(opened.parity),
                "degraded": [asdict(one) for one in opened.degraded],
                "coverage": [asdict(share) for share in shares(weights.values())],
                "weights": {str(name): dict(entry) for name, entry in weights.items()},
                "provenance": dict(opened.provenance),
            }
        )

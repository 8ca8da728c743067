"""A face of python_avatars, drawn as cairosvg draws it.

cairosvg takes 20 ms a face, most of it to read SVG anew and to walk it. What it asks of cairo is a tape of calls that
depends on the face part by part, so every part is walked once, its calls are kept, and a face is the tapes of its
parts played one after the other: the same calls in the same order, so the same pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

PARAMETERS = {
    "style": "AvatarStyle",
    "background_color": "BackgroundColor",
    "top": "TopType",
    "hat_color": "ClothingColor",
    "eyebrows": "EyebrowType",
    "eyes": "EyeType",
    "nose": "NoseType",
    "mouth": "MouthType",
    "facial_hair": "FacialHairType",
    "skin_color": "SkinColor",
    "hair_color": "HairColor",
    "facial_hair_color": "HairColor",
    "accessory": "AccessoryType",
    "clothing": "ClothingType",
    "clothing_color": "ClothingColor",
    "shirt_graphic": "ClothingGraphic",
}
"""The traits, and which enum of python_avatars each takes its values from."""

HEIGHT, WIDTH = 280, 264  # px of a face as python_avatars draws it


@functools.cache
def values(name: str) -> tuple[Any, ...]:
    """The members of the enum of a parameter, as python_avatars draws from them."""
    import python_avatars

    return tuple(getattr(python_avatars, PARAMETERS[name]).get_all())


@functools.cache
def names(name: str) -> tuple[str, ...]:
    """What they are called. Tops are of two enums, which share the name HAT: those of hats are called `HAT:...`."""
    import python_avatars

    hats = set(python_avatars.HatType)
    return tuple(f"HAT:{value.name}" if value in hats else value.name for value in values(name))


SHOWS: Mapping[str, tuple[str, ...]] = {
    "frame": ("style",),
    "clothing": ("clothing", "shirt_graphic"),
    "mouth": ("mouth",),
    "nose": ("nose",),
    "eyes": ("eyes",),
    "eyebrows": ("eyebrows",),
    "top": ("top",),
    "facial_hair": ("facial_hair",),
    "accessory": ("accessory",),
}
"""The parts of a face, and the parameters besides colours that choose what is drawn there."""
NEEDS = {"facial_hair": ("top",), "accessory": ("top",)}  # parts that are drawn within another
PLACES = {"clothing": "Clothing", "mouth": "Mouth", "nose": "Nose", "eyes": "Eyes", "eyebrows": "Eyebrow", "top": "Top"}
PLACES_ON_TOP = {"facial_hair": "Facial-Hair", "accessory": "Accessory"}
COLORS = [name for name in PARAMETERS if name.endswith("_color")]
STAND_INS = {name: f"#01{k:02X}F3" for k, name in enumerate(COLORS)}  # found again among the calls of a part


def pictures(rows: np.ndarray, size: tuple[int, ...], crop: tuple[int, ...]) -> np.ndarray:
    """Faces as they are drawn, uint8 [n, h, w, 3].

    rows: parameters int [n, 16].
    size: (h, w) px.
    crop: (left, top, right, bottom) of the drawing, before it is resized.
    """
    from PIL import Image

    images = np.empty((len(rows), *size, 3), np.uint8)
    for image, row in zip(images, rows.tolist(), strict=True):
        left, top, right, bottom = crop
        face = _rgb(_studio().face(row)[top:bottom, left:right])
        image[...] = Image.fromarray(face).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return images


def _rgb(pixels: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 4], cairo's blue, green, red times alpha, and alpha -> [h, w, 3] as in the PNG that cairo writes."""
    colors, alpha = pixels[..., 2::-1].copy(), pixels[..., 3]
    edges = np.nonzero((alpha > 0) & (alpha < 255))
    share = alpha[edges][:, None].astype(np.int32)
    colors[edges] = (colors[edges].astype(np.int32) * 255 + share // 2) // share
    return colors


@functools.cache
def _studio() -> _Studio:
    return _Studio()


class _Studio:
    """One canvas, and the tapes of all parts of faces met so far: lists of calls to make, of colours to set, and of
    other parts to play. About 250 in all, made in a second or two."""

    def __init__(self) -> None:
        import cairocffi
        from cairosvg.colors import color

        self.surface = cairocffi.ImageSurface(cairocffi.FORMAT_ARGB32, WIDTH, HEIGHT)
        self.context = cairocffi.Context(self.surface)
        self.tapes: dict[Any, list[Any]] = {}
        self.rgb = {name: [color(str(value))[:3] for value in values(name)] for name in COLORS}
        self.stand_ins = {color(value)[:3]: name for name, value in STAND_INS.items()}

    def face(self, row: Sequence[int]) -> np.ndarray:
        """uint8 [280, 264, 4] as cairo keeps it, valid until the next face."""
        import cairocffi

        chosen = dict(zip(PARAMETERS, row, strict=True))
        self.context.save()
        self.context.set_operator(cairocffi.OPERATOR_CLEAR)
        self.context.paint()
        self.context.restore()
        self.context.save()
        self._play(chosen, "frame", ())
        self.context.restore()  # raises what went wrong since
        self.context.new_path()
        self.surface.flush()
        return np.frombuffer(self.surface.get_data(), np.uint8).reshape(HEIGHT, WIDTH, 4)

    def _play(self, chosen: Mapping[str, int], part: str, around: tuple[Any, ...]) -> None:
        """around: what the part inherits from the SVG around it."""
        key = (part, around, *(chosen[name] for name in SHOWS[part]))
        tape = self.tapes.get(key)
        if tape is None:
            tape = self.tapes[key] = self._recorded(chosen, part)
        for call in tape:
            if type(call) is not tuple:
                call()
            elif call[0] in self.rgb:
                name, opacity = call
                self.context.set_source_rgba(*self.rgb[name][chosen[name]], opacity)
            else:
                self._play(chosen, *call)

    def _recorded(self, chosen: Mapping[str, int], part: str) -> list[Any]:
        """The part drawn by cairosvg on a face that has nothing else."""
        import python_avatars

        shown = {"style", *SHOWS[part], *NEEDS.get(part, ())}
        picked: dict[str, Any] = {name: values(name)[chosen[name]] if name in shown else None for name in PARAMETERS}
        ids = [("style", PLACES), ("top", PLACES_ON_TOP)]
        places = {
            f"{picked[file].value}_{id}": name for file, names in ids if file in shown for name, id in names.items()
        }
        svg = python_avatars.Avatar(**{**picked, **STAND_INS}, shirt_text=None).render()
        return [self._bound(call) for call in _calls(svg, places)[part]]

    def _bound(self, call: tuple[Any, ...]) -> Any:
        """The call, ready to be made on this canvas; one of cairo's own functions where it takes only numbers."""
        import cairocffi

        name, arguments = call
        if name in SHOWS:
            return call
        if name == "set_source_rgba" and arguments[:3] in self.stand_ins:
            return self.stand_ins[arguments[:3]], arguments[3]
        if all(type(value) in (int, float) for value in arguments):
            return functools.partial(getattr(cairocffi.cairo, f"cairo_{name}"), self.context._pointer, *arguments)
        return functools.partial(getattr(self.context, name), *arguments)


def _calls(svg: str, places: Mapping[str, str]) -> dict[str, list[tuple[Any, ...]]]:
    """What cairosvg asks of cairo, by part: (method, arguments), or (part, what it inherits) where one is within.

    places: id in the SVG -> part.
    """
    from cairosvg.parser import Tree
    from cairosvg.surface import PNGSurface

    parts: dict[str, list[tuple[Any, ...]]] = {"frame": []}
    open_parts = ["frame"]

    class Recorder(PNGSurface):  # type: ignore[misc]  # cairosvg has no types
        @property
        def context(self) -> Any:
            return self.recorded

        @context.setter
        def context(self, context: Any) -> None:
            self.recorded = _Recorded(context, lambda call: parts[open_parts[-1]].append(call))

        def draw(self, node: Any) -> None:
            part = places.get(node.get("id"))
            if part is None or part in parts:
                super().draw(node)
                return
            around = tuple(sorted((key, str(value)) for key, value in node.items() if key != "id"))
            parts[open_parts[-1]].append((part, (around, self.font_size)))
            parts[part] = []
            open_parts.append(part)
            super().draw(node)
            open_parts.pop()

    Recorder(Tree(bytestring=svg.encode()), None, 96)
    return parts


class _Recorded:
    """A cairo context that tells what is asked of it, but for questions."""

    def __init__(self, context: Any, tell: Any) -> None:
        self._context, self._tell = context, tell

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._context, name)
        if name.startswith(("get_", "has_", "copy_")) or name.endswith("_extents"):
            return method

        def told(*arguments: Any) -> Any:
            self._tell((name, arguments))
            return method(*arguments)

        return told

"""The model card of a bundle (its README.md): what the files are, what they can do, and code that
runs as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from searchspace.geometry import counted
from searchspace.groups import Element
from trainers.bundles.card_scores import (
    card_line,
    code_of,
    front_matter,
    integers_of,
    percent_of,
    score_of,
    scores_of,
    text_of,
)
from trainers.data.decoding import FULL_16_BIT

FORMAT_TEXTS = {
    "torch": "plain torch: the class and `load()`, and its weights (`torch.load(..., "
    "weights_only=True)`)",
    "safetensors": "the same weights; the metadata key `content` holds what `Model` in model.py "
    "is built from, as JSON",
    "torch.export": "an exported program, any batch size; needs nothing but torch",
    "onnx": "ONNX, any batch size, weights inside; input `images`, output `logits`",
}
FITS = {
    "resize": "stretched to {size} with an anti-aliased bilinear resize, and rounded to whole "
    "grey values",
    "pad": "padded with zeros or cropped, centred, to {size} (of an odd difference, the larger "
    "half lies below and right)",
}
SEEN = {  # what the files do to every image first, by `corners`
    "circle": "made black outside the inscribed circle, then ",
    "crop": "cut to the centre that no corner reaches, enlarged to the input size, then ",
}
FROM_FILES = (
    "## Use\n\nThe blocks run in this folder. From image files, with torch and Pillow; `prepare` "
    "does what training did with its images:\n"
    """
```python
import numpy, torch
from PIL import Image, ImageOps
from model import load

model = load()
image = ImageOps.exif_transpose(Image.open("image.png")).convert("MODE")
"""
    "pixels = torch.from_numpy(numpy.array(image)).reshape(image.height, image.width, -1)"
    """.permute(2, 0, 1)
with torch.no_grad():
    RESULT
```
"""
)
# what the block above ends with, by task
RESULTS = {
    "classification": """shares = model(model.prepare(pixels[None])).softmax(1)[0]
print(model.classes[shares.argmax()], float(shares.max()))""",
    "multilabel": """shares = model(model.prepare(pixels[None])).sigmoid()[0]
print(dict(zip(model.classes, shares.tolist())))""",
    "regression": """values = model(model.prepare(pixels[None]))[0]
print(dict(zip(model.classes, values.tolist())))""",
}


FROM_PIXELS = """With onnxruntime alone, from pixels of any size to {output}: resize, colour
and normalisation are in the graph (`predict.onnx`, opset {opset}; input `pixels`, uint8 `[batch, 1
to 4 channels, height, width]`: grey, grey and opacity, RGB, RGBA; output `{output}`):

```python
import json, numpy, onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("predict.onnx")
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
image = ImageOps.exif_transpose(Image.open("image.png")).convert("RGBA")
pixels = numpy.array(image).transpose(2, 0, 1)[None]
(shares,) = session.run(["{output}"], {{"pixels": pixels}})[0]
print({shown})
```

`equisearch predict FOLDER IMAGES...` does this for files, folders and patterns.
"""
TOP, ALL = "classes[shares.argmax()], shares.max()", "dict(zip(classes, shares.tolist()))"
PROBABILITIES = "probabilities"  # the output of `predict.onnx` in bundles that do not say
HEADLINES = {
    "classification": "Image classifier",
    "multilabel": "Labels of images",
    "regression": "Values from images",
}
PURPOSES = {
    "classification": "Tells {} classes apart",
    "multilabel": "Says which of {} labels an image has",
    "regression": "Predicts numbers in the units of the training's targets ({} of them)",
}
OUTPUTS = {
    "classification": "logits, in the order of the classes",
    "multilabel": "logits, in the order of the labels; their sigmoid is a probability",
    "regression": "values, in the order of the targets and in their units",
}


def card(manifest: Mapping[str, Any]) -> str:
    """The card of a bundle from its manifest (`trainers.bundles.export`), in Markdown. Its Python
    blocks run in the bundle's folder.
    """
    parts = [
        front_matter(manifest),
        _head(manifest),
        _of_outputs(manifest, scores_of(manifest)),
        _of_outputs(manifest, _symmetry(manifest)),
        _use(manifest),
        _images(manifest),
        _of_outputs(manifest, _files(manifest)),
        *([integers_of(manifest)] if manifest.get("int8") else []),
        _origin(manifest),
    ]
    return "\n".join(parts)


def _size_of(manifest: Mapping[str, Any]) -> str:
    """What a difference of 1 from pixels is."""
    return "a target's scale" if _task(manifest) == "regression" else "a probability"


def _of_outputs(manifest: Mapping[str, Any], text: str) -> str:
    """A section about logits, which of targets are values."""
    return text.replace("logit", "value") if _task(manifest) == "regression" else text


def _task(manifest: Mapping[str, Any]) -> str:
    return manifest.get("task", "classification")


def _size(manifest: Mapping[str, Any]) -> str:
    return f"{manifest['input']['height']} x {manifest['input']['width']} pixels"


def _compared(manifest: Mapping[str, Any]) -> str:
    """Which images the files were compared on: those of the validation split."""
    return f"{'validation' if manifest['data']['validation_images'] else 'training'} images"


def _head(manifest: Mapping[str, Any]) -> str:
    data, classes, given = manifest["data"], manifest["classes"], manifest["input"]
    names = ", ".join(map(code_of, classes[:20])) + (
        f" and {len(classes) - 20} more (bundle.json)" if len(classes) > 20 else ""
    )
    certain = manifest["exactness"].get("certain_group")
    built = (
        "an ordinary convolutional network"
        if manifest["group"] == "C1"
        else f"a convolutional network built to be equivariant under {manifest['group']}"
        if certain is None
        else f"a convolutional network whose weights are near to equivariance under "
        f"{manifest['group']}, exact for certain under {certain}"
    )
    size = manifest["architecture"].split(":")[0]
    colour = "grey" if given["channels"] == 1 else "colour"
    shape = ", ".join(str(given[key]) for key in ("channels", "height", "width"))
    return "\n".join(
        [
            f"# {HEADLINES[_task(manifest)]}: {text_of(data['data'])}, {size}, {manifest['group']}",
            "",
            f"{PURPOSES[_task(manifest)].format(len(classes))}: {names}. It is {built}, folded to "
            "plain "
            "convolutions, and is meant for images that may appear under",
            f"the symmetry **{manifest['declared']}**. Input: {colour} images of "
            f"{_size(manifest)}, as float32",
            f"`[batch, {shape}]` in 0..1; normalisation is inside. Output: "
            f"{OUTPUTS[_task(manifest)]}.",
            "",
            f"    {card_line(manifest['architecture'])}",
            "",
        ]
    )


def _symmetry(manifest: Mapping[str, Any]) -> str:
    rows, formats = manifest["elements"], list(manifest["formats"])
    if not rows:
        return "## Symmetry\n\nNo symmetry was declared.\n"
    lines = [
        "## Symmetry\n\nWhether the logits stay the same when the image is moved by an element "
        f"of {manifest['declared']}. *Exact* follows from the "
        "architecture; the change was measured",
        "on every file, as the largest difference of a logit relative to the spread of the "
        f"logits over {manifest['moved_images']} {_compared(manifest)} "
        "(float32 rounding: below 1e-3).",
        "",
        "| the image is | exact | "
        + " | ".join(f"change, {name}" for name in formats)
        + " | why not exact |",
        "|---|---|" + "---|" * len(formats) + "---|",
    ]
    for row in rows:
        change = row["relative_change"]
        cells = [f"{change[name]:.1e}" if change else "-" for name in formats]
        lines.append(
            f"| {_words(row['element'])} | {'yes' if row['exact'] else 'no'} | "
            f"{' | '.join(cells)} | {text_of(row['lost'] or '')} |"
        )
    return "\n".join([*lines, "", *_nearness(manifest)])


def _nearness(manifest: Mapping[str, Any]) -> list[str]:
    """How far relaxed weights are from the constraint; nothing for other networks."""
    distances = manifest["exactness"].get("weight_distances")
    if not distances:
        return []
    values = ", ".join(f"{text_of(name)} {value:.2g}" for name, value in distances.items())
    return [
        f"Weights are relaxed, so that symmetry beyond {manifest['exactness']['certain_group']} is "
        "near and not exact. Distance of each layer's weight from the equivariant ones, relative "
        f"to its size (0: exact): {values}.",
        "",
    ]


def _words(name: str) -> str:
    element = Element.parse(name)
    turned = f"rotated by {element.degrees:g}° counter-clockwise" if element.turn else ""
    return f"`{name}`: " + ", then ".join(
        word for word in ("mirrored left to right" if element.mirror else "", turned) if word
    )


def _use(manifest: Mapping[str, Any]) -> str:
    given = manifest["input"]
    shape = f"{given['channels']}, {given['height']}, {given['width']}"
    task, output = _task(manifest), manifest.get("output", {}).get("name", "logits")
    from_files = FROM_FILES.replace("    RESULT", "    " + RESULTS[task])
    parts = [from_files.replace("MODE", "L" if given["channels"] == 1 else "RGB")]
    if "torch.export" in manifest["formats"]:
        parts.append(f"""With torch alone, no Python source:

```python
import torch

model = torch.export.load("model.pt2").module()
images = torch.rand(8, {shape})      # values in 0..1
{output} = model(images)
```
""")
    if "onnx" in manifest["formats"]:
        parts.append(f"""With onnxruntime:

```python
import numpy, onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
images = numpy.random.rand(8, {shape}).astype("float32")      # values in 0..1
{output}, = session.run(["{output}"], {{"images": images}})
```
""")
    if manifest.get("predict", {}).get("file"):
        opset, result = (manifest["predict"].get(k) for k in ("opset", "output"))
        shown = TOP if task == "classification" else ALL
        parts.append(FROM_PIXELS.format(opset=opset, output=result or PROBABILITIES, shown=shown))
    parts += [
        f"- No {code_of(name)} file: {text_of(reason)}."
        for name, reason in manifest["refused"].items()
    ]
    return "\n".join(parts)


def _images(manifest: Mapping[str, Any]) -> str:
    data, normal = manifest["data"], manifest["normalisation"]
    fit = FITS[data["fit"]].format(size=_size(manifest))
    numbers = ", ".join(
        f"{mean:.4f} / {std:.4f}" for mean, std in zip(normal["mean"], normal["std"])
    )
    colour = "grey" if manifest["input"]["channels"] == 1 else "RGB"
    seen = SEEN.get(manifest["content"].get("corners"), "")
    return "\n".join(
        [
            "## How images are prepared",
            "",
            f"1. Decoded to 8-bit {colour}, upright by their EXIF orientation, what is transparent "
            f"made black{_scaled(data)}.",
            f"2. {fit[0].upper()}{fit[1:]}.",
            "3. Divided by 255. This is the input of every file but `predict.onnx`, which does "
            "steps 2 and 3 itself.",
            f"4. Inside the files: {seen}normalised by the mean / standard deviation of the "
            f"training images, {numbers}.",
            "",
            "Step 2 and 3 are `model.prepare(uint8 images)`; the first block above does step 1 for "
            "8-bit images without transparency. "
            f"Trained on {counted(data['train_images'], 'image')} of {text_of(data['data'])}.",
            "",
        ]
    )


def _scaled(data: Mapping[str, Any]) -> str:
    """What values of more than 8 bits become, where that is not their whole range."""
    top = data.get("top", FULL_16_BIT)
    return "" if top == FULL_16_BIT else f"; values of more than 8 bits scaled, 0..{top} to 0..255"


def _files(manifest: Mapping[str, Any]) -> str:
    rows = [
        f"| {', '.join(entry['files'])} | {FORMAT_TEXTS[name]} | {entry['max_difference']:.1e} | "
        f"{percent_of(entry['accuracy'])} |"
        for name, entry in manifest["formats"].items()
    ]
    if manifest.get("predict", {}).get("file"):
        entry = manifest["predict"]
        result = entry.get("output", PROBABILITIES)
        rows.append(
            f"| {entry['file']} | from uint8 pixels of any size and mode to {result} | "
            f"{entry['max_difference']:.1e} (of {_size_of(manifest)}, {entry['compared_images']} "
            "images) | - |"
        )
    if manifest.get("int8", {}).get("file"):
        entry = manifest["int8"]
        rows.append(
            f"| {entry['file']} | the ONNX network in 8-bit integers, see below | "
            f"{entry['max_difference']:.1e} | {percent_of(entry['scores']['accuracy']['int8'])} |"
        )
    return "\n".join(
        [
            "## Files",
            "",
            "Each was loaded again and compared with the trained network on "
            f"{manifest['compared_images']} {_compared(manifest)} before it was "
            "put here.",
            "",
            f"| file | what | largest difference of a logit | {score_of(manifest)} |",
            "|---|---|---|---|",
            *rows,
            "",
            "`bundle.json` holds all figures of this page, and the hashes of the files. "
            "`equisearch verify FOLDER` checks them. That shows",
            "whether the files are whole and as they were written, not who wrote them: whoever "
            "changes a file can write new hashes.",
            "`model.py` and `model.pt2` are programs; run them only if you trust where the "
            "bundle comes from.",
            "",
        ]
    )


def _origin(manifest: Mapping[str, Any]) -> str:
    training = manifest["training"]
    versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    loss = training["loss"]
    penalty = (
        "no equivariance loss"
        if loss["kind"] == "none"
        else f"equivariance loss {code_of(loss['text'])}"
        if "text" in loss
        else f"equivariance loss {loss['kind']} with weight {loss['weight']:.3g}"
    )
    lines = [
        f"- {key.replace('_', ' ')}: {text_of(value)}" for key, value in manifest["origin"].items()
    ]
    return "\n".join(
        [
            "## Where it comes from",
            "",
            *lines,
            f"- training: {counted(training['epochs'], 'epoch')}, {training['optimizer']}, "
            "learning rate "
            f"{training['learning_rate']:g}, batches of "
            f"{training['batch_size']}, {penalty}",
            f"- written: {manifest['written']} with {versions}",
            "",
        ]
    )

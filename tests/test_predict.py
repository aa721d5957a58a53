"""From image files to classes: the graph from pixels against the reader of training, and
`equisearch predict`.
"""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from studies.cli import bundles  # noqa: F401  (registers its commands)
from studies.cli.app import app
from studies.errors import StudyError
from studies.results.predictions import image_files, predict_images
from support.bundles import bundle, copied, manifest_of, rehash, subject  # noqa: F401  (fixtures)
from trainers.bundles import pixel_graph
from trainers.bundles.pixel_graph import (
    compared_images,
    image_reader,
    largest_difference,
    pixel_runner,
)
from trainers.bundles.predict import predict_files
from trainers.bundles.verify import load_checked, verify
from trainers.data.decoding import decode


@pytest.fixture
def images(tmp_path):
    """A folder of images of several sizes and modes, one of them torn."""
    folder = tmp_path / "images"
    (folder / "inner").mkdir(parents=True)
    for number, (mode, pixels) in enumerate(compared_images((17, 17))[:8]):
        image = Image.fromarray(pixels if pixels.shape[2] > 1 else pixels[..., 0])
        image.save(folder / "inner" / f"{number}-{mode}.png")
    (folder / "torn.png").write_bytes((folder / "inner" / "0-L.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["resize", "pad"])
def test_the_graph_reads_pixels_as_training_reads_files(bundle, tmp_path, channels, fit):
    """The images that reach the network, of every size and mode, are those of the reader."""
    import onnx
    from onnx import helper

    size = (9, 13)
    graph = pixel_graph._Graph()
    pixel_graph._prepare(graph, channels, size, fit)
    given = helper.make_tensor_value_info("pixels", 2, ["n", "c", "h", "w"])
    result = helper.make_tensor_value_info("images", 1, ["n", channels, *size])
    whole = helper.make_graph(graph.nodes, "prepare", [given], [result], graph.constants)
    proto = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 20)])
    proto.ir_version = 9
    onnx.checker.check_model(proto)
    import onnxruntime

    session = onnxruntime.InferenceSession(proto.SerializeToString())
    model = copy.copy(load_checked(bundle)[1])
    model.channels, model.size, model.fit = channels, size, fit
    load, gaps = image_reader(model), []
    for mode, pixels in [*compared_images(size), ("RGB", np.full((300, 2, 3), 77, np.uint8))]:
        (found,) = session.run(["images"], {"pixels": pixels.transpose(2, 0, 1)[None]})
        expected = load(mode, pixels)
        assert found.shape == tuple(expected.shape) == (1, channels, *size)
        gaps.append(255 * np.abs(found - expected.numpy()).ravel())
    levels = np.concatenate(gaps)
    # where a value lies halfway between two grey levels, the last digit decides
    assert levels.max() < 1.001 and (levels > 1e-3).mean() < 2e-3


def test_the_graph_gives_the_probabilities_of_the_network(bundle):
    manifest, model = load_checked(bundle)
    assert manifest.predict is not None and manifest.predict.opset >= 18
    run = pixel_runner(bundle)
    images, content = compared_images((17, 17)), manifest.plain_content
    assert largest_difference(run, model, image_reader(model), images, content) < 1e-5
    shares = run(torch.randint(0, 256, (5, 3, 20, 30), dtype=torch.uint8))
    assert shares.shape == (5, 10) and torch.allclose(shares.sum(1), torch.ones(5))


def test_verify_sees_a_graph_that_resizes_otherwise(copied, monkeypatch):
    def nearest(graph, side, out):
        weights = np.zeros((out, 1), np.float32)
        return graph.add("Add", honest(graph, side, out), graph.constant(weights + 0.01))

    honest = pixel_graph._weights
    monkeypatch.setattr(pixel_graph, "_weights", nearest)
    pixel_graph.write_pixel_graph(copied, manifest_of(copied)["content"])
    rehash(copied)
    (finding,) = [f for f in verify(copied).findings if f.check == "predict"]
    assert finding.good is False and "differ by" in finding.text


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_image_files_get_classes(bundle, images, runtime):
    found = predict_images(bundle, [images / "inner"], runtime=runtime)
    assert len(found.rows) == 8 and not found.skipped
    model = load_checked(bundle)[1]
    for row, (mode, pixels) in zip(found.rows, compared_images((17, 17))[:8]):
        shares = model(image_reader(model)(mode, pixels)).softmax(1)[0]
        assert row["class"] == model.classes[int(shares.argmax())]
        assert list(row["probabilities"].values()) == pytest.approx(shares.tolist(), abs=1e-3)


def test_an_orbit_is_the_mean_over_the_declared_moves(bundle, images):
    """Of an exact network it changes nothing; of another image size neither."""
    plain = predict_images(bundle, [images / "inner"])
    orbit = predict_images(bundle, [images / "inner"], orbit=True)
    for one, other in zip(plain.rows, orbit.rows):
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)
    broken = load_checked(bundle)[1]
    pixels = torch.randint(0, 256, (3, 1, 17, 17), dtype=torch.uint8)
    from searchspace.groups import Group
    from trainers.actions import act
    from trainers.bundles.predict import Predictor

    def lopsided(moved):
        return broken(moved.float() / 255 * torch.linspace(0, 1, 17)).softmax(1)

    elements = Group.parse("D4").elements
    predictor = Predictor(None, lopsided, elements)
    shares = predictor.probabilities(pixels)
    turned = predictor.probabilities(act(pixels, elements[3]))
    assert torch.allclose(shares, turned, atol=1e-6)
    assert not torch.allclose(shares, lopsided(pixels), atol=1e-3)


def test_what_cannot_be_read_is_named_and_the_status_says_so(bundle, images):
    found = CliRunner().invoke(
        app, ["predict", str(bundle), str(images), str(images / "gone.png"), "--format", "json"]
    )
    assert found.exit_code == 1, found.output
    assert len(json.loads(found.stdout)) == 8
    assert found.stderr.count("skipped: ") == 2
    assert "torn.png" in found.stderr and "gone.png (No such file or directory)" in found.stderr


def test_patterns_and_folders_name_each_file_once(images):
    inner = images / "inner"
    names = [inner, str(inner / "*.png"), f"{images}/**/0-*.png", inner / "0-L.png"]
    assert len(list(image_files(names))) == 8
    assert [path.name for path in image_files([images])][-1] == "torn.png"
    with pytest.raises(StudyError, match="no image file is meant by .*nothing"):
        predict_images(images, [images / "nothing*.png"])


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_working_directory(images, monkeypatch, name):
    monkeypatch.chdir(images)
    with pytest.raises(StudyError, match="the name of an image is empty"):
        list(image_files([name]))


def test_predict_runs_no_code_of_a_bundle(copied, images, tmp_path):
    (copied / "model.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    rehash(copied)
    assert predict_images(copied, [images / "inner"]).rows
    assert not (tmp_path / "mark").exists()


def test_a_damaged_bundle_predicts_nothing(copied, images):
    (copied / "predict.onnx").write_bytes(b"changed")
    with pytest.raises(StudyError, match="is damaged or was changed: predict.onnx"):
        predict_images(copied, [images], runtime="onnx")


def test_values_that_are_cut_off_in_images_to_predict_are_said(tmp_path, caplog):
    for number, hot in enumerate((40, 9, 9)):  # of 40 x 40, 9 are less than 1 %
        values = np.full((40, 40), 0.5, np.float32)
        values.flat[:hot] = 1.5
        Image.fromarray(values).save(tmp_path / f"{number}.tif")

    class Reads:
        def read(self, path, cut):
            return torch.from_numpy(decode(path, 1, cut=cut))

        def probabilities(self, pixels):
            return torch.zeros(len(pixels), 2)

    paths = sorted(tmp_path.glob("*.tif"))
    found = dict(predict_files(Reads(), paths))  # pyright: ignore[reportArgumentType]
    assert sum(isinstance(answer, str) for answer in found.values()) == 1
    assert "18 values in 2 of 3 images are outside 0..1 (from 0.5 to 1.5)" in caplog.text

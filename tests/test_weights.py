import hashlib
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from small_models import fill, small_model, snapshot

import nprcnn
from nprcnn.errors import WeightsError
from nprcnn.weights import report as weights_report
from nprcnn.weights.files import SHIPPED, read_weights, save_weights

REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture(scope="module")
def model():
    return small_model(dtype=np.float32)


@pytest.fixture(scope="module")
def other():
    """The same network with other numbers."""
    return fill(small_model(dtype=np.float32), "other ", np.float32)


def write(state, path):
    from safetensors.numpy import save_file
    np.savez(path, **state) if path.suffix == ".npz" else save_file(state, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_round_trip(other, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    save_weights(other, path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # nothing half-written is left
    state = read_weights(path)
    assert {name: a.tobytes() for name, a in state.items()} == snapshot(other)
    fresh = small_model(dtype=np.float32)
    assert snapshot(fresh) != snapshot(other)
    nprcnn.load_weights(fresh, str(path))
    assert snapshot(fresh) == snapshot(other)


def test_a_model_in_float64_saves_and_loads_as_such(tmp_path):
    model = small_model()
    save_weights(model, tmp_path / "w.safetensors")
    assert {a.dtype for a in read_weights(tmp_path / "w.safetensors").values()} == {np.dtype(np.float64)}
    single = small_model(dtype=np.float32)
    nprcnn.load_weights(single, tmp_path / "w.safetensors")
    assert {a.dtype for a in single.state_dict().values()} == {np.dtype(np.float32)}


def test_metadata(other, tmp_path):
    from safetensors import safe_open
    save_weights(other, tmp_path / "w.safetensors", {"seed": "0"})
    with safe_open(tmp_path / "w.safetensors", "numpy") as file:
        assert file.metadata() == {"seed": "0"}


@pytest.mark.parametrize("suffix", [".pt", ""])
def test_saving_under_an_unknown_suffix(other, tmp_path, suffix):
    with pytest.raises(WeightsError, match="safetensors or .npz"):
        save_weights(other, tmp_path / f"w{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_torch_style_extras_are_allowed(model, other, tmp_path):
    state = {**other.state_dict(), "backbone.body.bn1.num_batches_tracked": np.array(5)}
    fresh = small_model(dtype=np.float32)
    nprcnn.load_weights(fresh, write(state, tmp_path / "w.npz"))
    assert snapshot(fresh) == snapshot(other)


NAME = "roi_heads.box_head.fc7.weight"
CHANGES = {
    "NaN": (lambda s: s.update({NAME: np.full_like(s[NAME], np.nan)}), f"{NAME} holds NaN"),
    "infinity": (lambda s: s.update({NAME: np.full_like(s[NAME], np.inf)}), f"{NAME} holds NaN or inf"),
    "missing": (lambda s: s.pop(NAME), f"{NAME} is missing"),
    "left over": (lambda s: s.update(nonsense=np.zeros(3, np.float32)), "nonsense is not part of this model"),
    "shape": (lambda s: s.update({NAME: np.zeros((16, 17), np.float32)}), f"{NAME} has shape \\(16, 17\\).*\\(16, 16\\)"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_do_not_fit_change_nothing(model, other, tmp_path, suffix, change):
    state = other.state_dict()
    modify, message = CHANGES[change]
    modify(state)
    path = write(state, tmp_path / f"bad{suffix}")
    before = snapshot(model)
    with pytest.raises(WeightsError, match=f"bad{suffix}: .*{message}"):
        nprcnn.load_weights(model, path)
    assert snapshot(model) == before


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_files(model, other, tmp_path, suffix, share):
    whole = write(other.state_dict(), tmp_path / f"whole{suffix}").read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole[:int(share * len(whole))])
    before = snapshot(model)
    with pytest.raises(WeightsError, match=f"cut{suffix}: not a whole {suffix} file"):
        nprcnn.load_weights(model, path)
    assert snapshot(model) == before


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_flipped_and_foreign_bytes(model, other, tmp_path, suffix):
    before = snapshot(model)
    path = tmp_path / f"foreign{suffix}"
    path.write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(WeightsError, match="not a whole"):
        nprcnn.load_weights(model, path)
    assert snapshot(model) == before


def test_an_archive_of_something_else(model, tmp_path):
    np.savez(tmp_path / "text.npz", greeting=np.array(["hello"]))
    with pytest.raises(WeightsError, match="greeting is of type <U5"):
        nprcnn.load_weights(model, tmp_path / "text.npz")
    np.savez(tmp_path / "object.npz", thing=np.array([{}], object))
    with pytest.raises(WeightsError, match="object.npz: not a whole"):
        nprcnn.load_weights(model, tmp_path / "object.npz")  # an object would be unpickled, and that may run code
    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    with pytest.raises(WeightsError, match="single.npz: not a whole"):
        nprcnn.load_weights(model, tmp_path / "single.npz")


def test_paths_that_are_none(model, tmp_path):
    with pytest.raises(WeightsError, match="absent.npz: there is no such file"):
        nprcnn.load_weights(model, tmp_path / "absent.npz")
    with pytest.raises(WeightsError, match="is a folder; give the file of weights in it"):
        nprcnn.load_weights(model, tmp_path)
    (tmp_path / "weights.xyz").write_bytes(b"0")
    with pytest.raises(WeightsError, match=r"weights.xyz: weights of kind .xyz are not known; give a .safetensors, .npz, .pth or .pkl file"):
        nprcnn.load_weights(model, tmp_path / "weights.xyz")
    (tmp_path / "plain").write_bytes(b"0")
    with pytest.raises(WeightsError, match=r"\(no suffix\)"):
        nprcnn.load_weights(model, tmp_path / "plain")
    assert "shapes" in SHIPPED


# ---- the report ----

def test_the_report_of_a_file_that_fits(other, tmp_path):
    report = nprcnn.load_weights(small_model(dtype=np.float32), write(other.state_dict(), tmp_path / "w.npz"))
    assert report.complete and report.matched == list(other.state_dict())
    assert str(report) == repr(report) == f"w.npz: {len(report.matched)} tensors loaded, 0 missing in the file, 0 left over, 0 of another shape"


def test_not_strict_loads_what_fits(other, tmp_path):
    state = other.state_dict()
    removed, reshaped = "backbone.body.conv1.weight", "roi_heads.box_predictor.cls_score.weight"
    del state[removed]
    state[reshaped] = np.zeros((91, 16), np.float32)
    state.update({f"nonsense.{i}": np.zeros(i, np.float32) for i in range(12)}, **{"backbone.body.bn1.num_batches_tracked": np.array(5)})
    path = write(state, tmp_path / "w.npz")
    model = small_model(dtype=np.float32)
    before = snapshot(model)
    with pytest.raises(WeightsError, match=f"w.npz: .*{removed} is missing.*11 more"):
        nprcnn.load_weights(model, path)
    assert snapshot(model) == before
    report = nprcnn.load_weights(model, path, strict=False)
    wanted = snapshot(other)
    assert snapshot(model) == {**wanted, removed: before[removed], reshaped: before[reshaped]}
    assert not report.complete and report.missing == [removed] and report.left_over == [f"nonsense.{i}" for i in range(12)]
    assert report.shapes == [(reshaped, (91, 16), other.state_dict()[reshaped].shape)] and len(report.matched) == len(wanted) - 2
    text = str(report)
    assert "1 missing in the file, 12 left over, 1 of another shape" in text and re.search(rf"missing +{removed}", text)
    assert re.search(r"left over +nonsense.9\n +left over +and 2 more\n", text) and f"{reshaped}: (91, 16) in the file" in text


def test_not_strict_wants_something_to_fit(model, tmp_path):
    before = snapshot(model)
    with pytest.raises(WeightsError, match="not one tensor fits"):
        nprcnn.load_weights(model, write({"a": np.zeros(3, np.float32)}, tmp_path / "w.npz"), strict=False)
    assert snapshot(model) == before


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("array, message", [(np.zeros((16, 16), np.int32), "of type int32"), (np.zeros((16, 16), bool), "of type bool"),
                                            (np.full((16, 16), 1e39), "too large for float32")])
def test_types_that_are_no_weights(model, other, tmp_path, strict, array, message):
    before = snapshot(model)
    with pytest.raises(WeightsError, match=f"w.npz: {NAME} .*{message}"):
        nprcnn.load_weights(model, write({**other.state_dict(), NAME: array}, tmp_path / "w.npz"), strict)
    assert snapshot(model) == before


def test_a_part_of_a_model(other, tmp_path):
    """A backbone's file has the classifier besides."""
    body = {name.removeprefix("backbone.body."): a for name, a in other.state_dict().items() if name.startswith("backbone.body.")}
    model = small_model(dtype=np.float32)
    report = nprcnn.load_weights(model.backbone.body, write({**body, "fc.bias": np.zeros(7)}, tmp_path / "w.npz"), strict=False)
    assert (report.missing, report.left_over, report.shapes) == ([], ["fc.bias"], [])
    assert snapshot(model.backbone.body) == snapshot(other.backbone.body)


# ---- torchvision's old names ----

def test_old_key_names(tmp_path):
    other = fill(small_model(head_norm=None, dtype=np.float32), "other ", np.float32)  # norms are younger than the old names
    old = {}
    for name, array in other.state_dict().items():
        name = re.sub(r"(fpn\.(?:inner|layer)_blocks\.\d)\.0\.", r"\1.", name).replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        old[re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", name)] = array
    for name in ("backbone.fpn.inner_blocks.3.weight", "backbone.fpn.layer_blocks.0.bias", "rpn.head.conv.weight",
                 "roi_heads.mask_head.mask_fcn1.weight", "roi_heads.mask_head.mask_fcn2.bias"):
        assert name in old and name not in other.state_dict()
    model = small_model(head_norm=None, dtype=np.float32)
    report = nprcnn.load_weights(model, write(old, tmp_path / "w.npz"))
    assert snapshot(model) == snapshot(other) and report.complete
    old["rpn.head.conv.0.0.weight"] = old["rpn.head.conv.weight"]
    with pytest.raises(WeightsError, match="w.npz: rpn.head.conv.0.0.weight is in the file twice"):
        nprcnn.load_weights(model, write(old, tmp_path / "w.npz"))


def test_today_s_names_stay():
    names = [line.split()[0] for line in (REFERENCE / "maskrcnn_resnet50_fpn.keys.txt").read_text().splitlines()]
    assert len(names) > 300 and list(weights_report.current_names(dict.fromkeys(names))) == names
    # torchvision's v2: norms, and four convolutions before the box head's fully connected layer
    names = ["backbone.fpn.inner_blocks.0.1.weight", "rpn.head.conv.1.0.weight", "roi_heads.box_head.3.1.bias",
             "roi_heads.box_head.5.weight", "roi_heads.mask_head.3.1.running_var"]
    assert list(weights_report.current_names(dict.fromkeys(names))) == names


# ---- what the file's name tells ----

@pytest.mark.parametrize("name, eps", [
    ("maskrcnn_resnet50_fpn_coco-bf2d0c1e.npz", 0), ("fasterrcnn_resnet50_fpn_coco-258fb6c6-copy.npz", 0),
    ("maskrcnn_resnet50_fpn_v2_coco-73cbd019.npz", 1e-5), ("mine.npz", 1e-5)])
def test_eps_of_the_two_releases(tmp_path, name, eps):
    model = small_model("frozen", None, np.float32)
    norms = list(weights_report.frozen_norms(model))
    # bn1; in four blocks two norms, and in three of them one in the shortcut
    assert len(norms) == 1 + 4 * 2 + 3 and {norm.eps for norm in norms} == {1e-5}
    wrong = write({**model.state_dict(), "nonsense": np.zeros(1)}, tmp_path / name)
    with pytest.raises(WeightsError):
        nprcnn.load_weights(model, wrong)
    assert {norm.eps for norm in norms} == {1e-5}
    report = nprcnn.load_weights(model, write(model.state_dict(), tmp_path / name))
    assert {norm.eps for norm in norms} == {eps}
    assert ("eps is now 0 in the model's 12 FrozenBatchNorm layers" in str(report)) == (eps == 0)


def test_eps_of_other_norms_stays(tmp_path):
    model = small_model(dtype=np.float32)
    report = nprcnn.load_weights(model, write(model.state_dict(), tmp_path / "maskrcnn_resnet50_fpn_coco-bf2d0c1e.npz"))
    assert model.backbone.body.bn1.eps == 1e-5
    assert "BatchNorm layers are not frozen" in str(report) and "eps is now" not in str(report)


def pth(tmp_path, name):
    content = (REFERENCE / "weights_training.pth").read_bytes()
    path = tmp_path / name.format(hashlib.sha256(content).hexdigest()[:8])
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["model.pth", "model-{}.pth", "model-20241105.pth", "model-0123456.pth", "model_01234567.pth"])
def test_names_without_or_with_the_right_sha256(tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(read_weights(pth(tmp_path, name))) == ["w", "b"]


@pytest.mark.parametrize("name", ["model-01234567.pth", "model-20241305.pth", "model-00241105.pth"])
def test_names_with_another_sha256(tmp_path, name):
    with pytest.warns(UserWarning, match=f"{name}: the SHA-256 of the file begins with [0-9a-f]{{8}}, not with the {name[6:14]}"):
        assert list(read_weights(pth(tmp_path, name))) == ["w", "b"]


def test_a_known_release_must_be_it(tmp_path, monkeypatch):
    for name in weights_report.RELEASES:
        with pytest.raises(WeightsError, match=f"not with the {name[-8:]} of its name; .*download {name}.pth again"):
            read_weights(pth(tmp_path, f"{name}.pth"))
    with pytest.raises(WeightsError, match="not with the bf2d0c1e"):
        read_weights(pth(tmp_path, "maskrcnn_resnet50_fpn_coco-bf2d0c1e (1).pth"))
    right = pth(tmp_path, "known-{}.pth")
    monkeypatch.setattr(weights_report, "RELEASES", (right.stem,))
    assert list(read_weights(right)) == ["w", "b"]

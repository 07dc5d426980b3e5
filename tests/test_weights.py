import numpy as np
import pytest
from small_models import fill, small_model, snapshot

import nprcnn
from nprcnn.errors import WeightsError
from nprcnn.weights.files import SHIPPED, read_weights, save_weights


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
    with pytest.raises(WeightsError, match="there is no such file"):
        nprcnn.load_weights(model, tmp_path)
    (tmp_path / "weights.xyz").write_bytes(b"0")
    with pytest.raises(WeightsError, match=r"weights.xyz: weights of kind .xyz are not known; give a .safetensors or .npz"):
        nprcnn.load_weights(model, tmp_path / "weights.xyz")
    (tmp_path / "plain").write_bytes(b"0")
    with pytest.raises(WeightsError, match=r"\(no suffix\)"):
        nprcnn.load_weights(model, tmp_path / "plain")
    assert "shapes" in SHIPPED

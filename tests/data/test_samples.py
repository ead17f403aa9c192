import itertools
import json
import shutil

import numpy as np
import pytest
from helpers.layout import LTX2
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from justdubit_jax.data.batches import Batches
from justdubit_jax.data.precomputed import TENSORS, open_sample_file
from justdubit_jax.data.samples import find_samples, group_by_shape, read_sample, survey
from justdubit_jax.errors import InputError

FOLDERS = {role: role for role in TENSORS}


@pytest.fixture
def root(demo, tmp_path):
    """The demo's four samples, and a fifth of another shape, without a list."""
    shutil.copytree(demo / "dataset/.precomputed", tmp_path / "root")
    (tmp_path / "root/index.jsonl").unlink()
    for role in TENSORS:
        source = tmp_path / "root" / role / "clips/000_media.safetensors"
        with safe_open(source, framework="numpy") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        if role in ("latents", "reference_latents"):
            tensors = {k: np.ascontiguousarray(v[:, :2]) for k, v in tensors.items()}
        if role == "masks":
            tensors = {k: v[:2] for k, v in tensors.items()}
        save_file(tensors, source.with_name("004_media.safetensors"), metadata)
    return tmp_path / "root"


def test_samples_of_equal_shapes_stand_together(root):
    groups = group_by_shape(find_samples(root, FOLDERS))
    assert [(g.shape.grid, len(g.samples)) for g in groups] == [((4, 2, 3), 4), ((2, 2, 3), 1)]


def test_a_sample_as_tokens(root):
    sample = find_samples(root, FOLDERS)[0]
    batch = read_sample(sample, LTX2)
    with safe_open(sample.files["latents"], framework="numpy") as file:
        latents = file.get_tensor("latents")
    np.testing.assert_array_equal(batch.video.target[7], latents[:, 1, 0, 1])  # 7 = 6 f + 3 y + x
    assert batch.video.positions.shape == (3, 48, 2)
    # Reference positions start at 0 again, as the target's.
    np.testing.assert_array_equal(batch.video.positions[:, :24], batch.video.positions[:, 24:])
    np.testing.assert_allclose(batch.video.positions[0, 6], [1 / 25, 9 / 25], rtol=1e-6)
    assert batch.face_mask.shape == (24,)
    assert {x.dtype for x in (*batch.video[:4], *batch.audio[:4])} == {np.dtype(np.float32)}


def test_positions_are_those_of_the_files_frame_rate(root):
    sample = find_samples(root, FOLDERS)[0]
    path = sample.files["latents"]
    with safe_open(path, framework="numpy") as file:
        tensors, metadata = {"latents": file.get_tensor("latents")}, file.metadata()
    save_file(tensors, path, metadata | {"fps": "50.0"})
    positions = read_sample(sample, LTX2).video.positions
    for first in (6, 30):  # the second latent of the reference and of the target
        np.testing.assert_allclose(positions[0, first], [1 / 50, 9 / 50], rtol=1e-6)


def test_every_sample_once_an_epoch_and_shuffled(root):
    groups = group_by_shape(find_samples(root, FOLDERS))[:1]
    batches = Batches(groups, LTX2, 1, seed=0, threads=2)
    names = [next(batches)[1][0].name for _ in range(12)]
    epochs = [tuple(names[i : i + 4]) for i in (0, 4, 8)]
    assert all(len(set(epoch)) == 4 for epoch in epochs) and len(set(epochs)) > 1


def test_batches_come_from_one_group_and_drop_nothing(root):
    groups = group_by_shape(find_samples(root, FOLDERS))
    batches = Batches(groups, LTX2, 3, seed=0, threads=0)  # 3 does not divide 4
    seen = set()
    for group, chosen, batch in itertools.islice(batches, 10):
        assert batch.video.target.shape == (3, int(np.prod(group.shape.grid)), 16)
        names = {s.name for s in chosen}
        assert names <= {s.name for s in group.samples}
        seen |= names
    assert len(seen) == 5


def test_position_is_restored_exactly(root):
    groups = group_by_shape(find_samples(root, FOLDERS))
    first, second = (Batches(groups, LTX2, 2, seed=7, threads=t) for t in (2, 0))
    for _ in range(3):
        next(first)
    second.state = first.state
    for _ in range(5):
        (_, names, batch), (_, other_names, other) = next(first), next(second)
        assert names == other_names
        np.testing.assert_array_equal(batch.video.target, other.video.target)


@pytest.mark.parametrize("before, after", [(2, 1), (1, 2)])
def test_a_batch_of_another_size_goes_on_with_the_samples_not_yet_seen(root, before, after):
    groups = group_by_shape(find_samples(root, FOLDERS))[:1]  # four samples
    first, second = (Batches(groups, LTX2, n, seed=7, threads=0) for n in (before, after))
    seen = [files.name for _ in range(2 // before) for files in next(first)[1]]
    second.state = first.state
    seen += [files.name for _ in range(2 // after) for files in next(second)[1]]
    assert len(seen) == len(set(seen)) == 4


def test_hosts_read_different_samples_of_the_same_group(root):
    groups = group_by_shape(find_samples(root, FOLDERS))
    whole = Batches(groups, LTX2, 2, seed=3, threads=0)
    hosts = [Batches(groups, LTX2, 1, seed=3, threads=0, host=h, hosts=2) for h in (0, 1)]
    for _ in range(8):
        names = next(whole)[1]
        assert [next(h)[1][0] for h in hosts] == names


def test_a_missing_companion_is_named(root):
    (root / "audio_latents/clips/002_media.safetensors").unlink()
    with pytest.raises(InputError, match=r"002_media is incomplete: audio_latents/"):
        find_samples(root, FOLDERS)


def test_a_companion_without_its_clip_is_named(root):
    (root / "latents/clips/002_media.safetensors").unlink()
    with pytest.raises(InputError, match=r"incomplete: latents/"):
        find_samples(root, FOLDERS)


def test_masks_are_not_read_where_they_are_not_asked_for(root):
    shutil.rmtree(root / "masks")
    folders = {role: role for role in TENSORS if role != "masks"}
    assert read_sample(find_samples(root, folders)[0], LTX2).face_mask is None


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no preprocessed samples"):
        find_samples(tmp_path, FOLDERS)


@pytest.mark.parametrize(
    ("role", "tensors", "message"),
    [
        ("conditions", {"prompt_embeds": np.zeros(3)}, "no tensor 'video_context'"),
        ("masks", {"masks": np.zeros((1, 1, 1), np.float32)}, "mask is"),
    ],
)
def test_a_file_with_other_content_is_named(root, role, tensors, message):
    path = root / role / "clips/001_media.safetensors"
    save_file(tensors, path)
    with pytest.raises(InputError, match=rf"{role}/clips/001_media.safetensors: {message}"):
        group_by_shape(find_samples(root, FOLDERS))


def test_a_sample_is_closed_when_it_is_read(root):
    path = root / "masks/clips/001_media.safetensors"
    with open_sample_file(path, "masks") as file:
        assert file.get_slice("masks").get_shape() == [4, 2, 3]
    with pytest.raises(SafetensorError, match="closed"):
        file.get_slice("masks")


def test_a_damaged_file_is_named(root):
    (root / "latents/clips/001_media.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(InputError, match=r"001_media.safetensors: not a readable sample"):
        group_by_shape(find_samples(root, FOLDERS))


@pytest.fixture
def with_list(demo, root):
    """The same folder with the demo's list of four."""
    shutil.copy(demo / "dataset/.precomputed/index.jsonl", root)
    return root


def test_a_folder_without_a_list_says_how_many_it_found(root):
    found = survey(root, FOLDERS)
    assert str(found) == f"{root}: 5 samples found in its folders (it has no index.jsonl)"


def test_the_list_says_what_is_trained(with_list):
    found = survey(with_list, FOLDERS)
    assert [s.name for s in found.samples] == [f"clips/00{n}_media" for n in range(4)]
    left = "no row of the data set made them: 1 (clips/004_media)"
    assert str(found) == f"{with_list}: 4 samples, of index.jsonl; left out, as {left}"


def test_the_list_gives_the_groups_of_the_headers(root, with_list, monkeypatch):
    samples = find_samples(with_list, FOLDERS)
    with monkeypatch.context() as patch:
        patch.setattr("justdubit_jax.data.samples.open_sample_file", None)  # no file is opened
        by_list = group_by_shape(samples)
    (root / "index.jsonl").unlink()
    by_header = group_by_shape(find_samples(root, FOLDERS)[:4])
    assert [(g.shape, len(g.samples)) for g in by_list] == [(g.shape, 4) for g in by_header]


def test_a_file_that_is_not_as_listed_is_named_when_it_is_read(with_list):
    samples = find_samples(with_list, FOLDERS)
    other = with_list / "latents/clips/004_media.safetensors"
    shutil.copy(other, other.with_name("002_media.safetensors"))
    with pytest.raises(InputError, match=r"002_media.safetensors: latents is \[16, 2, 2, 3\]"):
        read_sample(samples[2], LTX2)


def test_a_listed_file_that_is_not_there_is_named(with_list):
    (with_list / "masks/clips/003_media.safetensors").unlink()
    with pytest.raises(InputError, match="clips/003_media is incomplete: masks/clips/003_media"):
        find_samples(with_list, FOLDERS)


def test_a_role_that_the_list_does_not_know_is_read_from_its_files(with_list):
    """A folder of masks of one's own, which preprocessing did not write."""
    (with_list / "masks").rename(with_list / "my_masks")
    lines = [json.loads(x) for x in (with_list / "index.jsonl").read_text().splitlines()]
    for line in lines:
        del line["files"]["masks"]
    (with_list / "index.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (group,) = group_by_shape(find_samples(with_list, FOLDERS | {"masks": "my_masks"}))
    assert group.shape.has_mask


def test_linked_folders_and_dots_are_found(root):
    """As report 05 has it: one set copied, one linked; and names with a leading dot."""
    for role in TENSORS:
        (root / role / "clips").rename(root / role / "set_a")
        (root / role / "set_b").symlink_to("set_a")
        file = root / role / "set_a/004_media.safetensors"
        file.rename(file.with_name(".004.safetensors"))
        (root / role / "set_a/._001_media.safetensors").touch()  # macOS
    names = [s.name for s in find_samples(root, FOLDERS)]
    want = [".004", *(f"00{n}_media" for n in range(4))]
    assert names == [f"set_{x}/{name}" for x in "ab" for name in want]


def test_linked_folders_are_trained_on_beside_the_list(with_list):
    """What a person has linked is wanted, though no row of this data set made it."""
    for role in TENSORS:
        (with_list / role / "set_b").symlink_to("clips")  # a list is there, too: this one
    found = survey(with_list, FOLDERS)
    listed = [f"clips/00{n}_media" for n in range(4)]
    assert [s.name for s in found.samples] == listed + [f"set_b/00{n}_media" for n in range(4)]
    assert "8 samples, of index.jsonl and 4 in linked folders; left out" in str(found)
    groups = group_by_shape(found.samples)
    assert [len(group.samples) for group in groups] == [8]


def test_a_folder_that_was_moved_and_linked_is_still_the_lists(with_list):
    for role in TENSORS:
        (with_list / role / "clips").rename(with_list / f"moved_{role}")
        (with_list / role / "clips").symlink_to(with_list / f"moved_{role}")
    (with_list / "index.jsonl").rename(with_list / "kept")
    assert len(survey(with_list, FOLDERS).samples) == 5
    (with_list / "kept").rename(with_list / "index.jsonl")
    found = survey(with_list, FOLDERS)
    assert (len(found.samples), found.linked) == (4, 0)


def test_the_data_sets_folder_stands_for_its_precomputed(demo):
    root = demo / "dataset"
    inside = find_samples(root / ".precomputed", FOLDERS)
    assert find_samples(root, FOLDERS) == inside


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("latents/a.pt", "the torch trainer's"),
        ("latents/clips/b.txt", "here or in .precomputed"),
        ("index.jsonl", "index.jsonl lists none"),
    ],
)
def test_what_there_is_instead_of_samples(tmp_path, file, reason):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
    with pytest.raises(InputError, match=f"no preprocessed samples; .*{reason}"):
        find_samples(tmp_path, FOLDERS)

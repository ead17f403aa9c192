"""What lies in a folder: behind links, with dots in its name, not in circles, nor half written."""

from justdubit_jax.data.index import Index
from justdubit_jax.data.walk import files_below


def test_files_are_found_behind_links_and_dots_and_not_in_circles(tmp_path):
    (tmp_path / "own/deep").mkdir(parents=True)
    (tmp_path / "other/x").mkdir(parents=True)
    for name in ("own/a", "own/.b", "own/deep/c.d", "own/.e.tmp-12", "other/f", "other/x/g"):
        (tmp_path / f"{name}.safetensors").touch()
    for link, target in (("own/x", "other"), ("own/y", "other"), ("own/deep/back", "own")):
        (tmp_path / link).symlink_to(tmp_path / target)
    (tmp_path / "own/h.safetensors").symlink_to("nowhere")
    found = files_below(tmp_path / "own")
    assert found.own == {"a", ".b", "deep/c.d", "h"}
    assert found.linked == {"x/f", "x/x/g", "y/f", "y/x/g"}
    assert files_below(tmp_path / "nowhere").names == set()


def test_a_linked_folder_gives_what_the_list_there_says(tmp_path):
    for root, names in (("one", ("a",)), ("two", ("b", "c", "clips/d", "clips/e"))):
        for name in names:
            path = tmp_path / root / f"latents/{name}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    there = Index(tmp_path / "two")
    for name in ("b", "clips/d"):
        there.add(name, {"latents": {"latents": (1,)}})
    (tmp_path / "one/latents/whole").symlink_to(tmp_path / "two/latents")
    (tmp_path / "one/latents/part").symlink_to(tmp_path / "two/latents/clips")
    found = files_below(tmp_path / "one/latents")
    assert found.own == {"a"}
    assert found.linked == {"whole/b", "whole/clips/d", "part/d"}

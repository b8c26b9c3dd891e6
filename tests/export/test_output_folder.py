"""How an output folder is replaced, and what a failure leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from intaglio_export.bundle.output_folder import replacing


def test_a_failed_replacement_leaves_the_old_bundle(tmp_path: Path) -> None:
    old = tmp_path / "out"
    old.mkdir()
    (old / "bundle.json").write_text("old")

    def fail() -> None:
        with replacing(old) as work:
            (work / "bundle.json").write_text("new")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert (old / "bundle.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_engines_stay_when_a_bundle_is_replaced(tmp_path: Path) -> None:
    bundle = tmp_path / "out"
    (bundle / "engines").mkdir(parents=True)
    (bundle / "engines" / "forked.plan").write_text("plan")
    (bundle / "bundle.json").write_text("old")
    with replacing(bundle) as work:
        (work / "bundle.json").write_text("new")
    assert (bundle / "bundle.json").read_text() == "new"
    assert (bundle / "engines" / "forked.plan").read_text() == "plan"
    assert list(tmp_path.iterdir()) == [bundle]


@pytest.mark.parametrize("there", [True, False])
def test_what_a_link_points_to_is_replaced(tmp_path: Path, there: bool) -> None:
    (tmp_path / "elsewhere").mkdir()
    bundle, link = tmp_path / "elsewhere" / "bundle", tmp_path / "link"
    link.symlink_to(bundle)
    if there:
        bundle.mkdir()
        (bundle / "bundle.json").write_text("old")
    with replacing(link) as work:
        (work / "bundle.json").write_text("new")
    assert link.is_symlink()
    assert (bundle / "bundle.json").read_text() == "new"
    assert sorted(tmp_path.iterdir()) == [bundle.parent, link]
    assert list(bundle.parent.iterdir()) == [bundle]

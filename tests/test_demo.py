import numpy as np

from nprcnn.cli import main
from nprcnn.data.images import read_image


def test_quick_demo_draws_every_stage(tmp_path, capsys):
    out = tmp_path / "pictures"
    assert main(["demo", "--quick", "--out", str(out)]) == 0
    names = sorted(p.name for p in out.iterdir())
    assert names == ["0_image.png", "1_features_p2.png", "1_features_p3.png", "1_features_p4.png", "2_anchors.png",
                     "3_proposals_before_nms.png", "4_proposals.png", "5_rois_by_level.png", "6_mask_logits.png",
                     "7_detections.png", "8_overview.png"]
    for name in names:
        picture = read_image(out / name)
        assert min(picture.shape[:2]) >= 100 and picture.std() > 5, f"{name} is empty"
    assert "rpn.proposals" in capsys.readouterr().out
    # the same seed draws the same pictures; another seed another image
    again, other = tmp_path / "again", tmp_path / "other"
    main(["demo", "--quick", "--out", str(again)])
    main(["demo", "--quick", "--out", str(other), "--seed", "1"])
    assert np.array_equal(read_image(out / "7_detections.png"), read_image(again / "7_detections.png"))
    assert (out / "0_image.png").read_bytes() != (other / "0_image.png").read_bytes()

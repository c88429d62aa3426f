"""tools/export.py on detectors, and what runs their files without torch and OpenMMLab."""
import ast
import importlib.util
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from PIL import Image
from torch import nn

from tests.test_detection import DETECTORS, TINY, build, settings
from tests.test_export import export, run_listing
from tests.test_predictor import write_weights
from tests.tiny_runs import ROOT, write_detection_run
from visattn_dense import Predictor
from visattn_dense.errors import UserError
from visattn_dense.openmmlab.detection_graph import DetectionGraph, check_detector
from visattn_dense.openmmlab.export import export as write_file
from visattn_dense.openmmlab.export import make_card, write
from visattn_dense.openmmlab.inference import open_detector
from visattn_dense.openmmlab.parity_detection import compare_detectors
from visattn_dense.predict.card import Card
from visattn_dense.predict.exported_detector import paste
from visattn_dense.predict.masks import decode
from visattn_dense.predict.sources import open_sources

MISSING = [name for name in ('onnx', 'onnxruntime', 'onnxscript')
           if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(MISSING), reason=f'the extra "export" lacks {MISSING}')
needs_compiler = pytest.mark.skipif(shutil.which('g++') is None, reason='needs g++')
CARD = Card(classes=['a', 'b', 'c'], palette=[[0, 0, 0]] * 3, mean=[0.] * 3, std=[1.] * 3,
            steps=[], task='instances', thresholds=dict(score=0.05, nms=0.5, mask=0.5))


def randomized(model: nn.Module) -> nn.Module:
    """Random weights that find objects."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel()**-0.5)
    return model.eval()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The folder of a run of Mask R-CNN, with its model as model.onnx."""
    folder = tmp_path_factory.mktemp('run')
    model = settings('mask_rcnn_fpn')
    model['test_cfg']['rpn'].update(nms_pre=100)
    config = write_detection_run(folder, f"""
model = {model!r}
metainfo = dict(classes=('p', 'q', 'r'), palette=[(9, 9, 9), (0, 255, 0), (255, 0, 0)])
test_dataloader['dataset']['metainfo'] = metainfo
""", images=4)
    write_weights(config, folder / 'epoch_1.pth')
    if not MISSING:
        assert export(folder, '--out', folder / 'model.onnx', '--license', 'MIT') == 0
    return folder


@pytest.mark.parametrize('name', DETECTORS)
@pytest.mark.parametrize('changes', [{}, {'few': True}])
def test_the_graph_finds_what_mmdet_finds(name: str, changes: dict):
    """With more candidates than a level has anchors, and with fewer."""
    few = {'nms_pre': 20} if changes else {}
    model = randomized(build(name))
    for part in (model.test_cfg, *(getattr(getattr(model, head, None), 'test_cfg', None)
                                   for head in ('rpn_head', 'bbox_head'))):
        if part is not None and 'nms_pre' in part:
            part.update(few)
    content = (90, 117)
    image = torch.randn(1, 3, 96, 128)
    sample = DetDataSample(metainfo=dict(img_shape=content, ori_shape=content,
                                         scale_factor=(1., 1.), batch_input_shape=(96, 128)))
    with torch.no_grad():
        boxes, scores, labels, *masks = DetectionGraph(model, CARD)(image, torch.tensor(content))
        (found,) = model.predict(image, [sample])
    found = found.pred_instances
    assert len(found) > 20
    torch.testing.assert_close(boxes, found.bboxes)
    torch.testing.assert_close(scores, found.scores)
    torch.testing.assert_close(labels, found.labels)
    assert bool(masks) == ('masks' in found)
    if masks:
        for mask, box, expected in zip(masks[0], boxes, found.masks, strict=True):
            pasted = decode(paste(mask.numpy(), box.numpy(), content, 0.5))
            assert (pasted != expected.numpy()).sum() <= 1


def test_a_picture_without_objects_gives_none():
    model = randomized(build('mask_rcnn_fpn'))
    model.roi_head.test_cfg.score_thr = 1.
    with torch.no_grad():
        boxes, scores, labels, masks = DetectionGraph(model, CARD)(
            torch.randn(1, 3, 64, 64), torch.tensor((64, 64)))
    assert boxes.shape == (0, 4) and scores.shape == labels.shape == (0,)
    assert masks.shape == (0, 28, 28)


@pytest.mark.parametrize('change, named', [
    (lambda model: model.rpn_head.test_cfg.nms.update(type='soft_nms'), 'soft_nms'),
    (lambda model: model.test_cfg.rcnn.update(mask_thr_binary=-1), 'mask_thr_binary'),
    (lambda model: setattr(model.roi_head.bbox_head.bbox_coder, 'add_ctr_clamp', True),
     'DeltaXYWHBBoxCoder')])
def test_a_detector_that_decides_otherwise_is_refused(change, named: str):
    model = build('mask_rcnn_fpn')
    change(model)
    with pytest.raises(UserError, match=named):
        check_detector(model)


@needs_onnx
def test_the_file_gives_the_results_of_the_model(folder, tmp_path):
    """The same types and numbers, in a process that has neither torch nor OpenMMLab."""
    pictures = sorted((folder / 'data/images').glob('*.png'))[::2]
    code = f"""
import sys
for name in ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmseg', 'mmdet', 'cv2'):
    sys.modules[name] = None
import pickle
from visattn_dense import Predictor
predict = Predictor({str(folder / 'model.onnx')!r})
found = list(predict({list(map(str, pictures))!r}, conf=0.))
found[0].save({str(tmp_path / 'out')!r})
pickle.dump(([(r.boxes, r.scores, r.labels, r.rles, r.model_size) for r in found],
             list(predict.classes), predict.runtime.card), open({str(tmp_path / 'found')!r}, 'wb'))
"""
    done = subprocess.run([sys.executable, '-c', code], text=True, capture_output=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    import pickle
    results, classes, card = pickle.loads((tmp_path / 'found').read_bytes())
    assert classes == ['p', 'q', 'r'] and card.license == 'MIT' and card.task == 'instances'
    assert card.thresholds == dict(score=0.05, nms=0.5, mask=0.5) and card.max_per_image == 100
    assert (tmp_path / 'out' / f'{pictures[0].stem}_overlay.png').is_file()
    reference = Predictor(folder, device='cpu')(pictures, conf=0.)
    for (boxes, scores, labels, rles, size), expected in zip(results, reference, strict=True):
        assert len(boxes) == len(expected) > 20 and size == expected.model_size
        np.testing.assert_allclose(boxes, expected.boxes, atol=2e-3)
        np.testing.assert_allclose(scores, expected.scores, atol=1e-4)
        np.testing.assert_array_equal(labels, expected.labels)
        differ = np.mean([(decode(rle) != mask).sum() > 2
                          for rle, mask in zip(rles, expected.masks, strict=True)])
        assert differ < 0.05


@needs_onnx
def test_options_and_sizes_work_on_the_file(folder, tmp_path):
    """A picture that is resized, and padded beside."""
    picture = np.random.default_rng(0).integers(0, 256, (150, 83, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / 'a.png')
    predict = Predictor(folder / 'model.onnx')
    (everything,) = predict(tmp_path / 'a.png', conf=0.)
    assert (everything.boxes[:, 2] <= 83.01).all() and (everything.boxes[:, 3] <= 150.01).all()
    assert everything.masks.shape == (len(everything), 150, 83)
    (some,) = predict(tmp_path / 'a.png', conf=0.35, classes=['q'], max_det=3)
    kept = [i for i in range(len(everything))
            if everything.labels[i] == 1 and everything.scores[i] >= 0.35][:3]
    assert len(kept) > 0
    np.testing.assert_array_equal(some.boxes, everything.boxes[kept])
    assert list(some.rles) == [everything.rles[i] for i in kept]


@needs_onnx
def test_a_file_of_other_weights_is_a_fault(folder):
    detector = open_detector(Config.fromfile(folder / 'tiny_det.py'), folder / 'epoch_1.pth')
    runtime = Predictor(folder / 'model.onnx').runtime
    pictures = open_sources(str(folder / 'data/images'))
    parity = compare_detectors(detector, runtime, pictures)
    assert parity.fault() is None and parity.matched >= 80 and parity.coordinate < 0.01
    with torch.no_grad():
        detector.model.roi_head.bbox_head.fc_cls.bias[0] += 0.5
    assert 'objects are matched' in compare_detectors(detector, runtime, pictures).fault()
    nothing = replace(parity, objects=(0, 0), matched=0)
    assert 'neither finds an object' in nothing.fault()


@needs_onnx
def test_the_file_has_onnx_operators_alone(folder):
    import onnx
    model = onnx.load(folder / 'model.onnx')
    kinds = {node.op_type for node in model.graph.node}
    assert {'NonMaxSuppression', 'RoiAlign'} <= kinds and not model.functions
    assert {node.domain for node in model.graph.node} <= {'', 'ai.onnx'}


@needs_onnx
def test_the_page_shows_the_use_without_this_project(folder):
    photo = folder / 'data/images/1.png'
    done = run_listing(folder / 'model.onnx', photo)
    assert done.returncode == 0, done.stderr
    found = ast.literal_eval(done.stdout)
    (expected,) = Predictor(folder / 'model.onnx')(photo)
    assert [entry[0] for entry in found] == expected.names and len(found) > 3
    np.testing.assert_allclose([entry[1] for entry in found], expected.scores, rtol=1e-5)
    np.testing.assert_allclose([entry[2] for entry in found], expected.boxes, atol=1e-3)
    areas = expected.masks.sum((1, 2))
    # A pixel on the threshold may fall to either side by rounding.
    for entry, area in zip(found, areas.tolist(), strict=True):
        assert abs(entry[3] - area) <= 2


@needs_onnx
def test_torch_export_and_pixels_as_input(folder):
    """A program of torch.export, and a file that takes pixels, find what the model finds."""
    assert export(folder, '--to', 'torch-export', '--with-pre-and-post', '--out',
                  folder / 'model.pt2') == 0


class PerObject(nn.Module):
    """Two convolutions of as many inputs as the first row of the picture has positive numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, image: torch.Tensor, content: torch.Tensor) -> torch.Tensor:
        found = (image[0, 0, 0] > 0).nonzero()[:, 0]
        return self.second(self.first(image.repeat(image.shape[3], 1, 1, 1)[found]))


@needs_compiler
def test_a_library_computes_each_object(tmp_path):
    model, size = PerObject().eval(), (12, 16)
    image, content = torch.randn(1, 3, *size), torch.tensor(size)
    program = torch.export.export(model, (image, content), strict=False)
    write(program, dict(image=image, content=content), CARD, tmp_path / 'm.pt2', to='aoti',
          size=size)
    compute = Predictor(tmp_path / 'm.pt2').runtime.compute
    for picture in (image, -image.abs(), image.abs()):
        with torch.no_grad():
            expected = model(picture, content)
        (found,) = compute(picture.numpy(), content.numpy())
        np.testing.assert_allclose(found, expected, atol=1e-5)


@needs_onnx
def test_a_detector_of_one_stage_in_full_and_in_half(tmp_path, capsys):
    """RetinaNet: the tool compares objects, and the file is that of the model."""
    config = write_detection_run(tmp_path, f"""
model = {settings('retinanet_fpn')!r}
metainfo = dict(classes=('p', 'q', 'r'), palette=[(9, 9, 9), (0, 255, 0), (255, 0, 0)])
test_dataloader['dataset']['metainfo'] = metainfo
""", images=2)
    write_weights(config, tmp_path / 'epoch_1.pth')
    (expected,) = Predictor(tmp_path, device='cpu')(tmp_path / 'data/images/0.png', conf=0.)
    for options in ([], ['--half']):
        path = tmp_path / f'model{len(options)}.onnx'
        assert export(tmp_path, '--out', path, *options) == 0
        assert int(re.search(r'(\d+) objects matched', capsys.readouterr().out)[1]) > 20
        (found,) = Predictor(path)(tmp_path / 'data/images/0.png', conf=0.)
        assert len(found) == len(expected) > 20 and found.masks is None
        if not options:
            np.testing.assert_allclose(found.boxes, expected.boxes, atol=2e-3)
            np.testing.assert_array_equal(found.labels, expected.labels)


@pytest.mark.parametrize('name', ['mask_rcnn_fpn', 'cascade_mask_rcnn'])
def test_a_detector_of_two_stages_may_have_no_masks(tmp_path, name):
    """Faster R-CNN, and Cascade R-CNN with boxes alone."""
    model = settings(name)
    del model['roi_head']['mask_head'], model['roi_head']['mask_roi_extractor']
    config = write_detection_run(tmp_path, f"""
model = {model!r}
metainfo = dict(classes=('p', 'q', 'r'), palette=[(9, 9, 9), (0, 255, 0), (255, 0, 0)])
test_dataloader['dataset']['metainfo'] = metainfo
""", images=2)
    cfg = Config.fromfile(config)
    detector = open_detector(cfg, write_weights(config, tmp_path / 'epoch_1.pth'))
    write_file(detector, make_card(cfg, detector, size=(64, 64)), tmp_path / 'm.pt2',
               to='torch-export', size=(64, 64))
    parity = compare_detectors(detector, Predictor(tmp_path / 'm.pt2').runtime,
                               open_sources(str(tmp_path / 'data/images')))
    assert parity.fault() is None and parity.matched > 20 and parity.mask is None


@pytest.mark.parametrize('size', [None, (64, 64)])
@pytest.mark.parametrize(('name', 'threshold'), [('retinanet_fpn', 1.), ('mask_rcnn_fpn', 1.),
                                                 ('mask_rcnn_fpn', None)])
def test_a_program_takes_pictures_of_one_object_and_of_none(tmp_path, name, threshold, size):
    config = write_detection_run(tmp_path, f"""
model = {settings(name)!r}
metainfo = dict(classes=('p', 'q', 'r'), palette=[(9, 9, 9), (0, 255, 0), (255, 0, 0)])
test_dataloader['dataset']['metainfo'] = metainfo
""", images=2)
    cfg = Config.fromfile(config)
    detector = open_detector(cfg, write_weights(config, tmp_path / 'epoch_1.pth'))
    path = tmp_path / 'data/images/0.png'
    (found,) = Predictor(tmp_path, device='cpu')(path, conf=0.)
    head = getattr(detector.model, 'roi_head', None) or detector.model.bbox_head
    # Between the best object and the next.
    head.test_cfg.score_thr = threshold or float(found.scores[:2].mean())
    write_file(detector, make_card(cfg, detector, size=size), tmp_path / 'm.pt2',
               to='torch-export', size=size)
    (found,) = Predictor(tmp_path / 'm.pt2', device='cpu')(path, conf=0.)
    assert len(found) == (0 if threshold else 1)


def test_a_program_for_any_size_finds_the_objects_of_small_pictures(tmp_path):
    """From the smallest size to which the config pads; the map of stride 128 has one place then."""
    config = write_detection_run(tmp_path, f"""
model = {settings('retinanet_fpn', TINY['EfficientViT'])!r}
metainfo = dict(classes=('p', 'q', 'r'), palette=[(9, 9, 9), (0, 255, 0), (255, 0, 0)])
test_dataloader['dataset']['metainfo'] = metainfo
test_dataloader['dataset']['pipeline'] = [
    step for step in test_pipeline if step['type'] != 'Resize']
""", images=2)
    weights = write_weights(config, tmp_path / 'epoch_1.pth')
    cfg = Config.fromfile(config)
    detector = open_detector(cfg, weights)
    card = write_file(detector, make_card(cfg, detector, size=None), tmp_path / 'm.pt2',
                      to='torch-export', size=None)
    assert card.smallest_side == 4
    picture = np.random.default_rng(0).integers(0, 256, (20, 50, 3), dtype=np.uint8)
    (expected,), (found,) = (Predictor(model, device='cpu')(picture, conf=0.)
                             for model in (tmp_path, tmp_path / 'm.pt2'))
    assert len(found) == len(expected) > 5
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=2e-3)
    np.testing.assert_array_equal(found.labels, expected.labels)

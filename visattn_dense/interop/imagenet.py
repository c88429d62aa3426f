"""Accuracy of an image classifier on a folder of images, one folder inside it for each class.

timm prepares the images as the model's config says (size, crop, interpolation, mean and standard
deviation). So the numbers equal the numbers of timm's own validation.
"""
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from timm.data import ImageNetInfo
from timm.data.readers.reader_image_folder import find_images_and_targets
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from visattn_dense.errors import MissingFileError, UserError, did_you_mean, few

_SYNSET = re.compile(r'n\d{8}')


@dataclass(frozen=True)
class Accuracy:
    """How many of `images` have the right class first, and among the first five."""

    images: int
    first: int
    five: int

    @property
    def top1(self) -> float:
        """Per cent."""
        return 100 * self.first / self.images

    @property
    def top5(self) -> float:
        """Per cent."""
        return 100 * self.five / self.images


def labelled_images(folder: Path, num_classes: int) -> list[tuple[str, int]]:
    """The images in the class folders of `folder`, with their labels.

    Folders with WordNet numbers as names (n01440764) are these classes of ImageNet-1k. Such folders
    may be some of the classes. With other names, there is one folder for each class, and the
    classes have the natural order of the names.

    Args:
        folder: has the class folders.
        num_classes: number of classes of the model.

    Raises:
        MissingFileError, UserError: the folder does not exist, has no class folders with images, or
            its class folders do not fit the model's classes.
    """
    if not folder.is_dir():
        raise MissingFileError(f'there is no folder {folder}')
    found, numbers = find_images_and_targets(str(folder))
    names = [name for name in numbers if name]
    if not names:
        raise UserError(f'{folder} has no class folders with images in it: ImageNet\'s validation '
                        'images have to lie in one folder for each class')
    if '' in numbers:
        raise UserError(f'{folder} holds images beside its class folders: which class are they of?')
    if all(map(_SYNSET.fullmatch, names)) and num_classes == 1000:
        synsets = {name: i for i, name in enumerate(ImageNetInfo('imagenet-1k').label_names())}
        if strangers := sorted(set(names) - synsets.keys()):
            raise UserError(f'{strangers[0]} in {folder} is no class of ImageNet-1k. '
                            f'{did_you_mean(strangers[0], synsets)}')
        return find_images_and_targets(str(folder), class_to_idx=synsets)[0]
    if len(names) != num_classes:
        raise UserError(f'{folder} has {len(names)} class folders ({few(sorted(names), 4)}) and '
                        f'the model {num_classes} classes; some of ImageNet\'s classes can stand '
                        'alone if their folders are called by WordNet numbers (n01440764)')
    return found


class Images(Dataset):
    """Images, labels, and for each image its fault in words ('' for none).

    An error of a worker process would come with a traceback, so `accuracy` raises a UserError for
    the fault.

    Args:
        samples: see `labelled_images`.
        transform: from a PIL image to a tensor.
    """

    def __init__(self, samples: Sequence[tuple[str, int]],
                 transform: Callable[[Image.Image], Tensor]) -> None:
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        path, label = self.samples[index]
        try:
            image, fault = Image.open(path).convert('RGB'), ''
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            image, fault = Image.new('RGB', (8, 8)), f'{path} cannot be read: {error}'
        return self.transform(image), label, fault


@torch.inference_mode()
def accuracy(model: nn.Module, loader: DataLoader,
             report: Callable[[Accuracy], object] = lambda so_far: None) -> Accuracy:
    """Count how often `model` is right.

    Args:
        model: from (B, C, H, W) to (B, classes). The images go to the device of the model.
        loader: batches of `Images`.
        report: called after each batch with the counts so far.

    Raises:
        UserError: an image cannot be read, or a logit is not finite.
    """
    model.eval()
    device = next(model.parameters()).device
    so_far = Accuracy(0, 0, 0)
    for images, labels, faults in loader:
        if fault := next(filter(None, faults), None):
            raise UserError(f'{fault}; mend or remove the file')
        logits = model(images.to(device, non_blocking=True)).float()
        if not logits.isfinite().all():
            raise UserError('the model returns NaN or infinity: its weights are damaged, or the '
                            'precision is too low')
        right = logits.topk(min(5, logits.shape[1])).indices == labels.to(device)[:, None]
        so_far = Accuracy(so_far.images + len(labels), so_far.first + int(right[:, 0].sum()),
                          so_far.five + int(right.sum()))
        report(so_far)
    return so_far

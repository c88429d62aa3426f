"""The class names of the datasets that the evaluation knows by name."""
from visattn_dense.evaluation.dataset_files import dataset_files


def dataset_classes(name: str) -> tuple[str, ...]:
    """Class names of a dataset, from the dataset class that training uses.

    Raises:
        UserError: the name is unknown.
    """
    kind = dataset_files(name).dataset
    # These imports are slow, so they come with the first call.
    import mmseg.datasets

    import visattn_dense.openmmlab.datasets
    home = visattn_dense.openmmlab.datasets if kind == 'CamVidDataset' else mmseg.datasets
    return tuple(getattr(home, kind).METAINFO['classes'])

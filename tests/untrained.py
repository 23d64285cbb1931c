"Runs of networks as random as they began, and photos of noise: what they say doesn't matter."
from pathlib import Path

import torch
from torch.utils.data import Dataset

from wsss_nb.backbones import BackboneSettings
from wsss_nb.cam import MultiScale
from wsss_nb.loaders import Batch
from wsss_nb.methods import RefinerMethod, System
from wsss_nb.prediction import PredictionSettings
from wsss_nb.refiners import DenseCRF
from wsss_nb.run import Config, Run, start_run
from wsss_nb.segmentation import DeepLab
from wsss_nb.training import save_model
from wsss_nb.visual_words import VisualWords


def untrained_run(
    root: Path,                       # the run's folder
    data: Path,
    backbone: str = 'resnet18',       # of both networks
    refiner: RefinerMethod = DenseCRF(),
) -> Run:
    "A run with a classifier and a segmenter that sees several labels."
    random = BackboneSettings(backbone, 'none', 16, True, 0, 'frozen')
    system = System('these tests', VisualWords(random, num_words=8), MultiScale(), refiner,
                    DeepLab(random), PredictionSettings(scales=(1.,)))
    run = start_run(Config(data, root, system, workers=0))
    torch.manual_seed(0)
    for role in ('classifier', 'segmenter'):
        network = run.system.parts()[role].network(len(run.classes))
        if role == 'segmenter':
            for branch in network.aspp.branches:
                torch.nn.init.normal_(branch.weight, std=1.)
        save_model(network, root/role)
    return run


class Noise(Dataset):
    "Eight crops of noise, each with one of three tags."
    def __len__(self):
        return 8

    def __getitem__(self, place):
        generator = torch.Generator().manual_seed(place.index)
        tags = torch.eye(3)[place.index % 3]
        return Batch(torch.randn(3, 16, 24, generator=generator), {'tags': tags})

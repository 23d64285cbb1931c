"""A refiner of another package: labels flow over pixels of about the same colour."""
from dataclasses import dataclass

import numpy as np

from wsss_nb.refiners import Refiner
from wsss_nb.settings import not_positive


@dataclass(frozen=True)
class Flood(Refiner):
    "Labels flow from sure cells to neighbours of a like colour, a pixel a round."
    name = 'flood'
    rounds: int = 8       # how often the labels flow to their neighbours
    colour: float = 12.0  # largest difference of colour that they cross, of 255

    def faults(self):
        return not_positive(self, 'rounds', 'colour')

    def labels(self, work, i, image, cam, background):
        labels = cam.to_labels(background, image.size[::-1])
        colours = np.asarray(image, np.float32)
        for _ in range(self.rounds):
            for axis in (0, 1):
                for step in (1, -1):
                    last = labels.shape[axis] - 1
                    beside = np.clip(np.arange(last + 1) - step, 0, last)   # not around the edge
                    neighbour = labels.take(beside, axis)
                    change = np.abs(colours - colours.take(beside, axis)).max(-1)
                    flows = (labels == 0) & (neighbour > 0) & (change < self.colour)
                    labels = np.where(flows, neighbour, labels)
        return labels

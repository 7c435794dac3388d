"""The code of a module that holds a network of one's own, made by `build`."""

CODE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, image):
        super().__init__()
        self.drop = nn.Dropout()
        self.dense = nn.Linear(image.num_pixels, image.num_classes)

    def forward(self, images):
        return self.drop(self.dense(images.flatten(1) / 255))

def build(image, training):
    return Net(image)
"""

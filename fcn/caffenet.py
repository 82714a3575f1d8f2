"""CaffeNet, the variant of AlexNet that the authors' FCN-AlexNet stands on."""

from collections import OrderedDict

from torch import Tensor, nn


class CaffeNet(nn.Module):
    """The ILSVRC classifier ``bvlc_reference_caffenet``, its layers under their Caffe names.

    It differs from AlexNet as published in that pooling comes before normalisation, and from
    torchvision's in its groups, its widths and its local response normalisation. A 227 x 227
    image is its own size.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, 96, 11, stride=4),
                relu1=nn.ReLU(inplace=True),
                pool1=nn.MaxPool2d(3, stride=2, ceil_mode=True),
                norm1=nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75),
                conv2=nn.Conv2d(96, 256, 5, padding=2, groups=2),
                relu2=nn.ReLU(inplace=True),
                pool2=nn.MaxPool2d(3, stride=2, ceil_mode=True),
                norm2=nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75),
                conv3=nn.Conv2d(256, 384, 3, padding=1),
                relu3=nn.ReLU(inplace=True),
                conv4=nn.Conv2d(384, 384, 3, padding=1, groups=2),
                relu4=nn.ReLU(inplace=True),
                conv5=nn.Conv2d(384, 256, 3, padding=1, groups=2),
                relu5=nn.ReLU(inplace=True),
                pool5=nn.MaxPool2d(3, stride=2, ceil_mode=True),
            )
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            OrderedDict(
                fc6=nn.Linear(256 * 6 * 6, 4096),
                relu6=nn.ReLU(inplace=True),
                drop6=nn.Dropout(),
                fc7=nn.Linear(4096, 4096),
                relu7=nn.ReLU(inplace=True),
                drop7=nn.Dropout(),
                fc8=nn.Linear(4096, num_classes),
            )
        )

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``N x num_classes`` of an image batch ``N x 3 x H x W``."""
        grid: Tensor = self.avgpool(self.features(image))
        logits: Tensor = self.classifier(grid.flatten(1))
        return logits

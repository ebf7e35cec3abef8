"""Networks for 32x32 images; importing this registers them with timm: ``timm.create_model("cifar_resnet20")``."""

from itrd_nlp.vision.networks import cifar_mobilenetv2, cifar_resnet, cifar_shufflenet, cifar_vgg, cifar_wrn

__all__ = ["cifar_mobilenetv2", "cifar_resnet", "cifar_shufflenet", "cifar_vgg", "cifar_wrn"]

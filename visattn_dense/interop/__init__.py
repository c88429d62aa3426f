"""The backbones in other people's frameworks. No module here needs OpenMMLab.

timm_models  `timm.create_model('visattn_cswin_tiny')`, as a classifier or `features_only=True`
classifier   the authors' classifier heads on the backbones
imagenet     accuracy of a classifier on a folder of images
hub          `save_pretrained` and `from_pretrained` of huggingface_hub
"""

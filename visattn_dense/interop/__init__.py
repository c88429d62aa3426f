"""The backbones in other people's frameworks. Neither module needs OpenMMLab.

timm_models  `timm.create_model('visattn_cswin_tiny', features_only=True)`
hub          `save_pretrained` and `from_pretrained` of huggingface_hub
"""

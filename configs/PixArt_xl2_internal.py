# The name that configs of the original project give to their base file.
_base_ = ["./_base_.py"]

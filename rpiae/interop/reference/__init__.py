"""The official layouts, RPiAE and RAE with LightningDiT: read and written."""

"""placeholder"""
from __future__ import annotations
class QubesDb:
    def __init__(self, port): self.t={}
    def fill(self, e): self.t=dict(e)
    def opened(self, c): return None

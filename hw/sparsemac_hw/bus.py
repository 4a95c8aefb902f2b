# SPDX-License-Identifier: Apache-2.0
"""Bus signatures with the flat names of the AMBA AXI specification (ARM IHI 0022).

Emitted port names are ``<bus>__<signal>``, e.g. ``m_axi__araddr``; no name is invented.
"""

from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Axi4Signature", "AxiLiteSignature"]

#: Bits of ``awid``/``arid``: the epoch of the core, which each soft reset advances.
ID_BITS = 4


class Axi4Signature(wiring.Signature):
    """AXI4 master without lock, cache, QoS, region and user signals.

    Parameters
    ----------
    data_width : int    Width of ``rdata`` and ``wdata`` [bits].
    """

    def __init__(self, data_width: int) -> None:
        self.data_width = data_width
        super().__init__({
            "awid": Out(ID_BITS), "awaddr": Out(32), "awlen": Out(8), "awsize": Out(3),
            "awburst": Out(2), "awprot": Out(3), "awvalid": Out(1), "awready": In(1),
            "wdata": Out(data_width), "wstrb": Out(data_width // 8), "wlast": Out(1),
            "wvalid": Out(1), "wready": In(1),
            "bid": In(ID_BITS), "bresp": In(2), "bvalid": In(1), "bready": Out(1),
            "arid": Out(ID_BITS), "araddr": Out(32), "arlen": Out(8), "arsize": Out(3),
            "arburst": Out(2), "arprot": Out(3), "arvalid": Out(1), "arready": In(1),
            "rid": In(ID_BITS), "rdata": In(data_width), "rresp": In(2), "rlast": In(1),
            "rvalid": In(1), "rready": Out(1),
        })


class AxiLiteSignature(wiring.Signature):
    """AXI4-Lite master of 32 data bits; flip it for a slave.

    Parameters
    ----------
    addr_width : int    Width of the byte addresses [bits].
    """

    def __init__(self, addr_width: int = 12) -> None:
        self.addr_width = addr_width
        super().__init__({
            "awaddr": Out(addr_width), "awprot": Out(3), "awvalid": Out(1), "awready": In(1),
            "wdata": Out(32), "wstrb": Out(4), "wvalid": Out(1), "wready": In(1),
            "bresp": In(2), "bvalid": In(1), "bready": Out(1),
            "araddr": Out(addr_width), "arprot": Out(3), "arvalid": Out(1), "arready": In(1),
            "rdata": In(32), "rresp": In(2), "rvalid": In(1), "rready": Out(1),
        })

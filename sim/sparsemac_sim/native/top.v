// SPDX-License-Identifier: Apache-2.0
// The core as the harness drives it: every input passes a register with a trigger of its own.
//
// A model evaluates all logic that depends on an input each time it is called. Behind a register it
// evaluates it when the register is loaded: what hangs on the reset (next to everything) when the
// reset changes, what hangs on the register port during an access, what hangs on the memory once a
// cycle, at the falling edge. The core sees the same values at its rising edges as without.

module sm_top #(parameter BUS_WIDTH = 64) (
  input clk,
  input load_reset, input load_registers,
  input rst,
  input [11:0] s_awaddr, input s_awvalid, output s_awready,
  input [31:0] s_wdata, input [3:0] s_wstrb, input s_wvalid, output s_wready,
  output [1:0] s_bresp, output s_bvalid, input s_bready,
  input [11:0] s_araddr, input s_arvalid, output s_arready,
  output [31:0] s_rdata, output [1:0] s_rresp, output s_rvalid, input s_rready,
  output [3:0] m_awid, output [31:0] m_awaddr, output [7:0] m_awlen, output [2:0] m_awsize,
  output [1:0] m_awburst, output m_awvalid, input m_awready,
  output [BUS_WIDTH-1:0] m_wdata, output [BUS_WIDTH/8-1:0] m_wstrb, output m_wlast,
  output m_wvalid, input m_wready,
  input [3:0] m_bid, input [1:0] m_bresp, input m_bvalid, output m_bready,
  output [3:0] m_arid, output [31:0] m_araddr, output [7:0] m_arlen, output [2:0] m_arsize,
  output [1:0] m_arburst, output m_arvalid, input m_arready,
  input [3:0] m_rid, input [BUS_WIDTH-1:0] m_rdata, input [1:0] m_rresp, input m_rlast,
  input m_rvalid, output m_rready,
  output irq
);
  reg q_rst;
  always @(posedge load_reset) q_rst <= rst;

  reg [11:0] q_s_awaddr, q_s_araddr;
  reg [31:0] q_s_wdata;
  reg [3:0] q_s_wstrb;
  reg q_s_awvalid, q_s_wvalid, q_s_bready, q_s_arvalid, q_s_rready;
  always @(posedge load_registers) begin
    q_s_awaddr <= s_awaddr;
    q_s_awvalid <= s_awvalid;
    q_s_wdata <= s_wdata;
    q_s_wstrb <= s_wstrb;
    q_s_wvalid <= s_wvalid;
    q_s_bready <= s_bready;
    q_s_araddr <= s_araddr;
    q_s_arvalid <= s_arvalid;
    q_s_rready <= s_rready;
  end

  reg [3:0] q_m_bid, q_m_rid;
  reg [1:0] q_m_bresp, q_m_rresp;
  reg [BUS_WIDTH-1:0] q_m_rdata;
  reg q_m_awready, q_m_wready, q_m_bvalid, q_m_arready, q_m_rlast, q_m_rvalid;
  always @(negedge clk) begin
    q_m_awready <= m_awready;
    q_m_wready <= m_wready;
    q_m_bid <= m_bid;
    q_m_bresp <= m_bresp;
    q_m_bvalid <= m_bvalid;
    q_m_arready <= m_arready;
    q_m_rid <= m_rid;
    q_m_rdata <= m_rdata;
    q_m_rresp <= m_rresp;
    q_m_rlast <= m_rlast;
    q_m_rvalid <= m_rvalid;
  end

  sparsemac_core core (
    .clk(clk), .rst(q_rst), .irq(irq),
    .s_axil__awaddr(q_s_awaddr), .s_axil__awprot(3'd0),
    .s_axil__awvalid(q_s_awvalid), .s_axil__awready(s_awready),
    .s_axil__wdata(q_s_wdata), .s_axil__wstrb(q_s_wstrb),
    .s_axil__wvalid(q_s_wvalid), .s_axil__wready(s_wready),
    .s_axil__bresp(s_bresp), .s_axil__bvalid(s_bvalid), .s_axil__bready(q_s_bready),
    .s_axil__araddr(q_s_araddr), .s_axil__arprot(3'd0),
    .s_axil__arvalid(q_s_arvalid), .s_axil__arready(s_arready),
    .s_axil__rdata(s_rdata), .s_axil__rresp(s_rresp),
    .s_axil__rvalid(s_rvalid), .s_axil__rready(q_s_rready),
    .m_axi__awid(m_awid), .m_axi__awaddr(m_awaddr), .m_axi__awlen(m_awlen),
    .m_axi__awsize(m_awsize), .m_axi__awburst(m_awburst), .m_axi__awprot(),
    .m_axi__awvalid(m_awvalid), .m_axi__awready(q_m_awready),
    .m_axi__wdata(m_wdata), .m_axi__wstrb(m_wstrb), .m_axi__wlast(m_wlast),
    .m_axi__wvalid(m_wvalid), .m_axi__wready(q_m_wready),
    .m_axi__bid(q_m_bid), .m_axi__bresp(q_m_bresp),
    .m_axi__bvalid(q_m_bvalid), .m_axi__bready(m_bready),
    .m_axi__arid(m_arid), .m_axi__araddr(m_araddr), .m_axi__arlen(m_arlen),
    .m_axi__arsize(m_arsize), .m_axi__arburst(m_arburst), .m_axi__arprot(),
    .m_axi__arvalid(m_arvalid), .m_axi__arready(q_m_arready),
    .m_axi__rid(q_m_rid), .m_axi__rdata(q_m_rdata), .m_axi__rresp(q_m_rresp),
    .m_axi__rlast(q_m_rlast), .m_axi__rvalid(q_m_rvalid), .m_axi__rready(m_rready)
  );
endmodule

# SPDX-License-Identifier: Apache-2.0
"""Boards: platforms, board tops, links and builds."""

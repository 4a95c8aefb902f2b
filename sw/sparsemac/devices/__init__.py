# SPDX-License-Identifier: Apache-2.0
"""Devices that need no more than the library itself."""

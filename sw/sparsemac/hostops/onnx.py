# SPDX-License-Identifier: Apache-2.0
"""Host operations of ONNX, in NumPy."""

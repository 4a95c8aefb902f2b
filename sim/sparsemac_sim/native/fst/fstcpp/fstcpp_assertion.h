// SPDX-License-Identifier: Apache-2.0
// The checks of Verilator's wave writer, which end the process in its own version of this header.
//
// A full disc makes them fail, and a run goes on without its waves then: so they throw.

#pragma once

#include <stdexcept>

#define FST_CHECK(a) \
    if (!(a)) [[unlikely]] throw std::runtime_error("waves cannot be written: " #a)

#define FST_CHECK_EQ(a, b) FST_CHECK((a) == (b))
#define FST_CHECK_NE(a, b) FST_CHECK((a) != (b))
#define FST_CHECK_GT(a, b) FST_CHECK((a) > (b))
#define FST_CHECK_GE(a, b) FST_CHECK((a) >= (b))
#define FST_CHECK_LT(a, b) FST_CHECK((a) < (b))
#define FST_CHECK_LE(a, b) FST_CHECK((a) <= (b))

#define FST_DCHECK(a) FST_CHECK(a)
#define FST_DCHECK_EQ(a, b) FST_CHECK_EQ(a, b)
#define FST_DCHECK_NE(a, b) FST_CHECK_NE(a, b)
#define FST_DCHECK_GT(a, b) FST_CHECK_GT(a, b)
#define FST_DCHECK_GE(a, b) FST_CHECK_GE(a, b)
#define FST_DCHECK_LT(a, b) FST_CHECK_LT(a, b)
#define FST_DCHECK_LE(a, b) FST_CHECK_LE(a, b)

#define FST_UNREACHABLE __builtin_unreachable()

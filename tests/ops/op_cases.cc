// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "base/strings.h"
#include "kernels/linear.h"
#include "tests/ops/op_case.h"

namespace nibble::ops {
namespace {

using Vector = std::vector<double>;

std::string Named(const char* op, std::initializer_list<int64_t> sizes) {
  std::string name = std::string(op) + "_f32";
  for (const int64_t size : sizes) name += "_" + std::to_string(size);
  return name;
}
size_t At(int64_t i) { return static_cast<size_t>(i); }

OpCase Embedding(int64_t tokens, int64_t width, int64_t vocabulary) {
  OpCase c;
  c.name = Named("Embedding", {tokens, width, vocabulary});
  c.inputs = {{vocabulary, width}, {1, tokens, static_cast<int32_t>(vocabulary), 0, false}};
  c.outputs = {{tokens, width}};
  c.forward = [](Backend& b, const Views& in, const Views& out) {
    return b.EmbeddingForward(in[0], in[1], out[0]);
  };
  c.backward = [](Backend& b, const Views& in, const Views&, TensorView dout, const Views& din) {
    return b.EmbeddingBackward(in[1], dout, din[0]);
  };
  c.reference = [=](const Doubles& in) {
    Vector out;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t i = 0; i < width; ++i) {
        out.push_back(in[0][At(static_cast<int64_t>(in[1][At(t)]) * width + i)]);
      }
    }
    return out;
  };
  return c;
}

OpCase RmsNorm(int64_t rows, int64_t width) {
  OpCase c;
  c.name = Named("RmsNorm", {rows, width});
  c.inputs = {{rows, width}, {1, width, 0, 1.0}};
  c.outputs = {{rows, width}, {1, rows}};
  c.forward = [](Backend& b, const Views& in, const Views& out) {
    return b.RmsNormForward(in[0], in[1], 1e-5f, out[0], out[1]);
  };
  c.backward = [](Backend& b, const Views& in, const Views& out, TensorView dout,
                  const Views& din) {
    return b.RmsNormBackward(dout, in[0], in[1], out[1], din[0], true, din[1]);
  };
  c.reference = [=](const Doubles& in) {
    Vector out;
    for (int64_t t = 0; t < rows; ++t) {
      double sum = 0;
      for (int64_t i = 0; i < width; ++i) sum += std::pow(in[0][At(t * width + i)], 2);
      const double rstd = 1.0 / std::sqrt(sum / static_cast<double>(width) + 1e-5);
      for (int64_t i = 0; i < width; ++i) {
        out.push_back(in[0][At(t * width + i)] * rstd * in[1][At(i)]);
      }
    }
    return out;
  };
  return c;
}

OpCase Rope(const RopeParams& p) {
  const int64_t tokens = p.batch * p.seq;
  const int64_t width = p.heads * p.head_dim;
  OpCase c;
  c.name = Named("Rope", {p.batch, p.seq, p.heads, p.head_dim, p.position_offset});
  c.inputs = {{tokens, width}};
  c.outputs = {{tokens, width}};
  c.forward = [=](Backend& b, const Views& in, const Views& out) {
    return b.RopeForward(p, in[0], out[0]);
  };
  c.backward = [=](Backend& b, const Views&, const Views&, TensorView dout, const Views& din) {
    RETURN_IF_ERROR(b.Copy(din[0].data, dout.data, dout.size_bytes()));
    return b.RopeBackward(p, din[0]);
  };
  c.reference = [=](const Doubles& in) {
    Vector out(At(tokens * width));
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t i = 0; i < width; ++i) {
        const int64_t half = p.head_dim / 2;
        const int64_t inside = i % p.head_dim;
        const bool first = inside < half;
        const double exponent =
            -2.0 * static_cast<double>(inside % half) / static_cast<double>(p.head_dim);
        const double angle =
            static_cast<double>(t % p.seq + p.position_offset) * std::pow(p.theta, exponent);
        const double mine = in[0][At(t * width + i)];
        const double other = in[0][At(t * width + (first ? i + half : i - half))];
        out[At(t * width + i)] =
            mine * std::cos(angle) + (first ? -other : other) * std::sin(angle);
      }
    }
    return out;
  };
  c.tolerance = 1e-5;
  return c;
}

Vector AttentionReference(const AttentionParams& p, const Doubles& in) {
  const int64_t q_width = p.heads * p.head_dim;
  const int64_t kv_width = p.kv_heads * p.head_dim;
  const int64_t past = p.kv_seq - p.seq;
  Vector out(At(p.batch * p.seq * q_width));
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t h = 0; h < p.heads; ++h) {
      for (int64_t t = 0; t < p.seq; ++t) {
        const int64_t query = (b * p.seq + t) * q_width + h * p.head_dim;
        const int64_t kv = b * p.kv_seq * kv_width + h / (p.heads / p.kv_heads) * p.head_dim;
        Vector weight(At(past + t + 1));
        double sum = 0;
        for (int64_t j = 0; j <= past + t; ++j) {
          double score = 0;
          for (int64_t i = 0; i < p.head_dim; ++i) {
            score += in[0][At(query + i)] * in[1][At(kv + j * kv_width + i)];
          }
          weight[At(j)] = std::exp(score / std::sqrt(static_cast<double>(p.head_dim)));
          sum += weight[At(j)];
        }
        for (int64_t j = 0; j <= past + t; ++j) {
          for (int64_t i = 0; i < p.head_dim; ++i) {
            out[At(query + i)] += weight[At(j)] / sum * in[2][At(kv + j * kv_width + i)];
          }
        }
      }
    }
  }
  return out;
}

OpCase Attention(const AttentionParams& p) {
  OpCase c;
  c.name = Named("Attention", {p.batch, p.seq, p.kv_seq, p.heads, p.kv_heads, p.head_dim});
  const int64_t q_width = p.heads * p.head_dim;
  const int64_t kv_width = p.kv_heads * p.head_dim;
  c.inputs = {
      {p.batch * p.seq, q_width}, {p.batch * p.kv_seq, kv_width}, {p.batch * p.kv_seq, kv_width}};
  c.outputs = {{p.batch * p.seq, q_width}, {p.batch * p.heads, p.seq}};
  c.forward = [=](Backend& b, const Views& in, const Views& out) {
    return b.AttentionForward(p, in[0], in[1], in[2], out[0], out[1]);
  };
  if (p.kv_seq == p.seq) {
    c.backward = [=](Backend& b, const Views& in, const Views& out, TensorView dout,
                     const Views& din) {
      return b.AttentionBackward(p, dout, in[0], in[1], in[2], out[0], out[1], din[0], din[1],
                                 din[2]);
    };
  }
  c.reference = [=](const Doubles& in) { return AttentionReference(p, in); };
  c.tolerance = 4e-6;
  return c;
}

OpCase SwiGlu(int64_t rows, int64_t width) {
  OpCase c;
  c.name = Named("SwiGlu", {rows, width});
  c.inputs = {{rows, width}, {rows, width}};
  c.outputs = {{rows, width}};
  c.forward = [](Backend& b, const Views& in, const Views& out) {
    return b.SwiGluForward(in[0], in[1], out[0]);
  };
  c.backward = [](Backend& b, const Views& in, const Views&, TensorView dout, const Views& din) {
    return b.SwiGluBackward(dout, in[0], in[1], din[0], din[1]);
  };
  c.reference = [](const Doubles& in) {
    Vector out;
    for (size_t i = 0; i < in[0].size(); ++i) {
      out.push_back(in[0][i] / (1.0 + std::exp(-in[0][i])) * in[1][i]);
    }
    return out;
  };
  return c;
}

OpCase CrossEntropy(int64_t rows, int64_t vocabulary) {
  OpCase c;
  c.name = Named("CrossEntropy", {rows, vocabulary});
  c.inputs = {{rows, vocabulary}, {1, rows, static_cast<int32_t>(vocabulary), 0, false}};
  c.outputs = {{1, rows}, {rows, vocabulary}};
  c.forward = [](Backend& b, const Views& in, const Views& out) {
    RETURN_IF_ERROR(b.Copy(out[1].data, in[0].data, in[0].size_bytes()));
    return b.CrossEntropy(out[1], in[1], 1.0f, out[1], out[0]);
  };
  c.backward = [](Backend& b, const Views&, const Views& out, TensorView, const Views& din) {
    return b.Copy(din[0].data, out[1].data, out[1].size_bytes());
  };
  c.reference = [=](const Doubles& in) {
    Vector out;
    for (int64_t t = 0; t < rows; ++t) {
      double sum = 0;
      for (int64_t i = 0; i < vocabulary; ++i) sum += std::exp(in[0][At(t * vocabulary + i)]);
      const int64_t target = static_cast<int64_t>(in[1][At(t)]);
      out.push_back(std::log(sum) - in[0][At(t * vocabulary + target)]);
    }
    return out;
  };
  c.unit_dout = true;
  return c;
}

// A linear layer under recipe fp32: y = x w^T.
OpCase Linear(int64_t tokens, int64_t in_width, int64_t out_width) {
  OpCase c;
  c.name = Named("Linear", {tokens, in_width, out_width});
  c.inputs = {{tokens, in_width}, {out_width, in_width}};
  c.outputs = {{tokens, out_width}};
  c.forward = [](Backend& b, const Views& in, const Views& out) {
    const LinearRecipe recipe = FindRecipe("fp32")->linear;
    LinearWorkspace workspace(&b);
    LinearInput input(&workspace, recipe, 0);
    QuantizedLinear linear(&workspace, recipe, 0);
    RETURN_IF_ERROR(input.Set({}, in[0]));
    return linear.Forward({}, input, in[1], 1, out[0]);
  };
  c.backward = [](Backend& b, const Views& in, const Views&, TensorView dout, const Views& din) {
    const LinearRecipe recipe = FindRecipe("fp32")->linear;
    LinearWorkspace workspace(&b);
    LinearInput input(&workspace, recipe, 0);
    QuantizedLinear linear(&workspace, recipe, 0);
    RETURN_IF_ERROR(input.Set({}, in[0]));
    return linear.Backward({}, dout, input, in[1], 1, din[0], true, din[1]);
  };
  c.reference = [=](const Doubles& in) {
    Vector out(At(tokens * out_width));
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t n = 0; n < out_width; ++n) {
        for (int64_t k = 0; k < in_width; ++k) {
          out[At(t * out_width + n)] += in[0][At(t * in_width + k)] * in[1][At(n * in_width + k)];
        }
      }
    }
    return out;
  };
  c.tolerance = 4.0 * 0x1p-24 * static_cast<double>(in_width) + 1e-6;
  return c;
}

OpCase Add(int64_t size) {
  OpCase c;
  c.name = Named("Add", {size});
  c.inputs = {{1, size}, {1, size}};
  c.outputs = {{1, size}};
  c.forward = [](Backend& b, const Views& in, const Views& out) {
    return b.Add(in[0], in[1], out[0]);
  };
  c.backward = [](Backend& b, const Views&, const Views&, TensorView dout, const Views& din) {
    RETURN_IF_ERROR(b.Axpy(1.0f, dout, din[0]));
    return b.Axpy(1.0f, dout, din[1]);
  };
  c.reference = [](const Doubles& in) {
    Vector out;
    for (size_t i = 0; i < in[0].size(); ++i) out.push_back(in[0][i] + in[1][i]);
    return out;
  };
  return c;
}

}  // namespace

std::vector<OpCase> AllOpCases() {
  return {
      Embedding(1, 1, 1),
      Embedding(67, 131, 29),
      RmsNorm(1, 1),
      RmsNorm(3, 17),
      RmsNorm(101, 67),
      Rope({1, 1, 1, 2}),
      Rope({2, 7, 3, 6}),
      Rope({1, 37, 2, 34, 5, 500.0}),
      Attention({1, 1, 1, 1, 1, 1}),
      Attention({2, 7, 7, 4, 2, 5}),
      Attention({1, 67, 67, 2, 1, 8}),
      Attention({1, 131, 131, 3, 3, 4}),
      Attention({1, 3, 70, 4, 2, 6}),  // three new positions after 67 cached ones
      SwiGlu(1, 1),
      SwiGlu(13, 701),
      CrossEntropy(1, 1),
      CrossEntropy(5, 2),
      CrossEntropy(11, 509),
      Linear(1, 1, 1),
      Linear(7, 13, 5),
      Linear(131, 67, 257),
      Add(1),
      Add(16411),
  };
}

}  // namespace nibble::ops

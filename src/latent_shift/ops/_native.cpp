// Temporal shift, GroupNorm with one scale and bias or one for each picture, and SiLU: channels_last features on a CPU.
//
// Compiled by _native.py on the machine that runs it. Features are `pictures` times `pixels` rows of `channels`; pictures
// are frames of clips, frames fastest. A part of the work is some groups of one picture, read twice from the cache. Sums
// are in fp32, of distances to each channel's first pixel, so that nothing cancels.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>

namespace {

struct bfloat16 {
  uint16_t bits;
};

struct Sizes {
  int64_t pictures, channels, pixels, groups, frames;
  int64_t shifted;  // channels that come from a frame before, and as many from a frame after
  int64_t distance;  // of that frame
  int64_t circular;
  int64_t splits;  // of the groups
  int64_t affine_stride;  // 0 where all pictures share weight and bias
  int64_t activate;  // 0 for no SiLU
};

inline float load(float value) { return value; }

inline float load(bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

inline void store(float* place, float value) { *place = value; }

inline void store(bfloat16* place, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  place->bits = static_cast<uint16_t>(is_nan ? 0x7fc0u : rounded);
}

// Moments are summed over so many pixels, as distances from the first of them, and then joined (Chan et al.): neither one
// unusual pixel nor a mean far from zero takes digits from the others.
constexpr int64_t block_pixels = 32;

// 1 / (1 + exp(-x)) without a branch or a call, so that compilers vectorise it. The exponential is 2^n times a polynomial
// in the rest, with the coefficients of Cephes' expf.
inline float sigmoid(float x) {
  const float y = std::min(std::max(-x, -87.0f), 88.0f);
  const float n = std::nearbyint(y * 1.44269504f);
  const float r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return x != x ? x : 1.0f / (1.0f + p * power);
}

// Where the channels [first, last) of a shifted picture come from: up to three runs (Eq. 3). A run without a frame to come
// from is zeros; going around the circle it is paired with the one that nobody reads, whose gradient is zero.
class Source {
 public:
  Source(const Sizes& s, int64_t picture, int64_t first, int64_t last) : s_(s) {
    const int64_t frame = picture % s.frames;
    const int64_t ends[] = {0, s.shifted, s.channels - s.shifted, s.channels};
    for (int64_t step = -1; step <= 1; ++step) {
      const int64_t begin = std::max(first, ends[step + 1]), end = std::min(last, ends[step + 2]);
      if (begin >= end) continue;
      const int64_t wanted = frame + step * s.distance, around = (wanted % s.frames + s.frames) % s.frames;
      runs_[count_++] = {begin, end - begin, picture - frame + around, s.circular || wanted == around};
    }
  }

  bool is_one() const { return count_ == 1 && runs_[0].exists; }

  template <typename T>
  T* first(T* x, int64_t pixel) const {
    return place(runs_[0], x, pixel);
  }

  // A row of the shifted picture: where it lies, or put together in `buffer`.
  template <typename T>
  const T* gather(const T* x, int64_t pixel, T* buffer) const {
    if (is_one()) return first(x, pixel);
    T* end = buffer;
    for (int i = 0; i < count_; ++i) {
      const size_t bytes = runs_[i].length * sizeof(T);
      if (runs_[i].exists) {
        std::memcpy(end, place(runs_[i], x, pixel), bytes);
      } else {
        std::memset(end, 0, bytes);
      }
      end += runs_[i].length;
    }
    return buffer;
  }

  // The gradient of `gather`.
  template <typename T>
  void scatter(const T* row, T* x, int64_t pixel) const {
    for (int i = 0; i < count_; ++i) {
      const size_t bytes = runs_[i].length * sizeof(T);
      if (runs_[i].exists) {
        std::memcpy(place(runs_[i], x, pixel), row, bytes);
      } else {
        std::memset(place(runs_[i], x, pixel), 0, bytes);
      }
      row += runs_[i].length;
    }
  }

 private:
  struct Run {
    int64_t channel, length, picture;
    bool exists;
  };

  template <typename T>
  T* place(const Run& run, T* x, int64_t pixel) const {
    return x + (run.picture * s_.pixels + pixel) * s_.channels + run.channel;
  }

  const Sizes& s_;
  Run runs_[3];
  int count_ = 0;
};

template <typename Job>
void for_each_part(const Sizes& s, Job job) {
  const int64_t groups = s.groups / s.splits, width = s.channels / s.groups;
#pragma omp parallel for schedule(static)
  for (int64_t part = 0; part < s.pictures * s.splits; ++part) {
    const int64_t group = part % s.splits * groups;
    job(part / s.splits, group, groups, width);
  }
}

template <bool activate, typename T>
void forward(const Sizes& s, float eps, const T* x, const float* weight, const float* bias, T* out, float* means,
             float* rstds) {
  for_each_part(s, [&](int64_t picture, int64_t group, int64_t groups, int64_t width) {
    const int64_t first = group * width, channels = groups * width;
    const Source source(s, picture, first, first + channels);
    const std::unique_ptr<T[]> buffer(new T[channels]);
    const std::unique_ptr<float[]> floats(new float[5 * channels]());
    float *origin = floats.get(), *sum = origin + channels, *square = sum + channels;
    float *level = square + channels, *spread = level + channels;
    for (int64_t start = 0; start < s.pixels; start += block_pixels) {
      const int64_t end = std::min(start + block_pixels, s.pixels);
      for (int64_t pixel = start; pixel < end; ++pixel) {
        const T* row = source.gather(x, pixel, buffer.get());
        if (pixel == start) {
          for (int64_t c = 0; c < channels; ++c) {
            origin[c] = load(row[c]);
            sum[c] = square[c] = 0;
          }
        }
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c) {
          const float distance = load(row[c]) - origin[c];
          sum[c] += distance;
          square[c] += distance * distance;
        }
      }
      const float more = static_cast<float>(end - start), share = more / static_cast<float>(end);
      const float weight_of_both = static_cast<float>(start) * share;
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        const float away = origin[c] + sum[c] / more - level[c];
        spread[c] += square[c] - sum[c] * sum[c] / more + away * away * weight_of_both;
        level[c] += away * share;
      }
    }
    float *scale = sum, *offset = square;
    const float* w = weight + picture * s.affine_stride + first;
    const float* b = bias + picture * s.affine_stride + first;
    const float pixels = static_cast<float>(s.pixels);
    for (int64_t g = 0; g < groups; ++g) {
      float mean = 0, squares = 0;
      for (int64_t c = g * width; c < (g + 1) * width; ++c) mean += level[c];
      mean /= static_cast<float>(width);
      for (int64_t c = g * width; c < (g + 1) * width; ++c) {
        const float away = level[c] - mean;
        squares += spread[c] + pixels * away * away;
      }
      const float rstd = 1.0f / std::sqrt(std::max(squares, 0.0f) / (pixels * static_cast<float>(width)) + eps);
      means[picture * s.groups + group + g] = mean;
      rstds[picture * s.groups + group + g] = rstd;
      for (int64_t c = g * width; c < (g + 1) * width; ++c) {
        scale[c] = rstd * w[c];
        offset[c] = b[c] - mean * scale[c];
      }
    }
    for (int64_t pixel = 0; pixel < s.pixels; ++pixel) {
      const T* row = source.gather(x, pixel, buffer.get());
      T* place = out + (picture * s.pixels + pixel) * s.channels + first;
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        const float z = load(row[c]) * scale[c] + offset[c];
        store(place + c, activate ? z * sigmoid(z) : z);
      }
    }
  });
}

template <bool activate, typename T>
void backward(const Sizes& s, const T* upstream, const T* x, const float* weight, const float* bias,
              const float* means, const float* rstds, T* gradient, float* weight_sums, float* bias_sums) {
  for_each_part(s, [&](int64_t picture, int64_t group, int64_t groups, int64_t width) {
    const int64_t first = group * width, channels = groups * width;
    const Source source(s, picture, first, first + channels);
    const std::unique_ptr<T[]> buffer(new T[channels]), values(new T[channels]);
    const std::unique_ptr<float[]> floats(new float[(4 + s.pixels) * channels]);
    float *scale = floats.get(), *offset = scale + channels, *along = offset + channels, *level = along + channels;
    float* slopes = level + channels;
    const float* w = weight + picture * s.affine_stride + first;
    const float* b = bias + picture * s.affine_stride + first;
    float *weight_sum = weight_sums + picture * s.channels + first, *bias_sum = bias_sums + picture * s.channels + first;
    const float *mean = means + picture * s.groups + group, *rstd = rstds + picture * s.groups + group;
    for (int64_t c = 0; c < channels; ++c) {
      scale[c] = rstd[c / width];
      offset[c] = -mean[c / width] * scale[c];
      weight_sum[c] = bias_sum[c] = 0;
    }
    for (int64_t pixel = 0; pixel < s.pixels; ++pixel) {
      const T* row = source.gather(x, pixel, buffer.get());
      const T* above = upstream + (picture * s.pixels + pixel) * s.channels + first;
      float* slope = slopes + pixel * channels;
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        const float normal = load(row[c]) * scale[c] + offset[c];
        float dz = load(above[c]);
        if (activate) {
          const float z = normal * w[c] + b[c], gate = sigmoid(z);
          dz *= gate * (1.0f + z * (1.0f - gate));
        }
        slope[c] = dz;
        bias_sum[c] += dz;
        weight_sum[c] += dz * normal;
      }
    }
    const float count = static_cast<float>(s.pixels * width);
    for (int64_t g = 0; g < groups; ++g) {
      float one = 0, normal = 0;
      for (int64_t c = g * width; c < (g + 1) * width; ++c) {
        one += w[c] * bias_sum[c];
        normal += w[c] * weight_sum[c];
      }
      // dx = rstd * (w * dz - one / count - (x * rstd - mean * rstd) * normal / count)
      for (int64_t c = g * width; c < (g + 1) * width; ++c) {
        along[c] = -rstd[g] * rstd[g] * normal / count;
        level[c] = -rstd[g] * (one + offset[c] * normal) / count;
        scale[c] = rstd[g] * w[c];
      }
    }
    for (int64_t pixel = 0; pixel < s.pixels; ++pixel) {
      const T* row = source.gather(x, pixel, buffer.get());
      const float* slope = slopes + pixel * channels;
      T* place = source.is_one() ? source.first(gradient, pixel) : values.get();
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        store(place + c, slope[c] * scale[c] + load(row[c]) * along[c] + level[c]);
      }
      if (!source.is_one()) source.scatter(place, gradient, pixel);
    }
  });
}

template <typename T>
void choose_forward(const Sizes& s, float eps, const T* x, const float* weight, const float* bias, T* out, float* means,
                    float* rstds) {
  (s.activate ? forward<true, T> : forward<false, T>)(s, eps, x, weight, bias, out, means, rstds);
}

template <typename T>
void choose_backward(const Sizes& s, const T* upstream, const T* x, const float* weight, const float* bias,
                     const float* means, const float* rstds, T* gradient, float* weight_sums, float* bias_sums) {
  const auto chosen = s.activate ? backward<true, T> : backward<false, T>;
  chosen(s, upstream, x, weight, bias, means, rstds, gradient, weight_sums, bias_sums);
}

}  // namespace

extern "C" {

void forward_float(const Sizes* s, float eps, const float* x, const float* weight, const float* bias, float* out,
                   float* means, float* rstds) {
  choose_forward(*s, eps, x, weight, bias, out, means, rstds);
}

void forward_bfloat16(const Sizes* s, float eps, const bfloat16* x, const float* weight, const float* bias,
                      bfloat16* out, float* means, float* rstds) {
  choose_forward(*s, eps, x, weight, bias, out, means, rstds);
}

void backward_float(const Sizes* s, const float* upstream, const float* x, const float* weight, const float* bias,
                    const float* means, const float* rstds, float* gradient, float* weight_sums, float* bias_sums) {
  choose_backward(*s, upstream, x, weight, bias, means, rstds, gradient, weight_sums, bias_sums);
}

void backward_bfloat16(const Sizes* s, const bfloat16* upstream, const bfloat16* x, const float* weight,
                       const float* bias, const float* means, const float* rstds, bfloat16* gradient,
                       float* weight_sums, float* bias_sums) {
  choose_backward(*s, upstream, x, weight, bias, means, rstds, gradient, weight_sums, bias_sums);
}

}  // extern "C"

// Ten training steps by feedback in C++: onnxruntime and a file of `export_training_step`; no torch, no Python, no autograd.
//
// The file holds its weights (parameters="inside", the default) and any optimizer. Its model takes rows of five floats as `x` and
// gives a score to each of three classes; its reward is "softmax". With headers and library of onnxruntime's release archive:
//
//   g++ -std=c++17 examples/step.cpp -I onnxruntime/include -L onnxruntime/lib -lonnxruntime -o step
//   LD_LIBRARY_PATH=onnxruntime/lib ./step step.onnx trained.txt
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

namespace {

const Ort::MemoryInfo cpu = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);

// A tensor on numbers that the caller keeps.
template <typename T>
Ort::Value tensor(std::vector<T>& numbers, const std::vector<int64_t>& shape) {
  return Ort::Value::CreateTensor<T>(cpu, numbers.data(), numbers.size(), shape.data(), shape.size());
}

std::vector<std::string> output_names(const Ort::Session& session) {
  Ort::AllocatorWithDefaultOptions allocator;
  std::vector<std::string> names;
  for (size_t i = 0; i < session.GetOutputCount(); i++) names.push_back(session.GetOutputNameAllocated(i, allocator).get());
  return names;
}

// Zeros for the optimizer's state: what the file takes, has no value for, and gives back as `new/NAME`.
void bind_state(const Ort::Session& session, const std::vector<std::string>& outputs, Ort::IoBinding& bound) {
  Ort::AllocatorWithDefaultOptions allocator;
  for (size_t i = 0; i < session.GetInputCount(); i++) {
    const std::string name = session.GetInputNameAllocated(i, allocator).get();
    if (std::find(outputs.begin(), outputs.end(), "new/" + name) == outputs.end()) continue;
    const Ort::TypeInfo type = session.GetInputTypeInfo(i);
    const std::vector<int64_t> shape = type.GetTensorTypeAndShapeInfo().GetShape();
    Ort::Value made = Ort::Value::CreateTensor<float>(allocator, shape.data(), shape.size());
    std::fill_n(made.GetTensorMutableData<float>(), made.GetTensorTypeAndShapeInfo().GetElementCount(), 0.0f);
    bound.BindInput(name.c_str(), made);
  }
}

// One line for each parameter, buffer or state: its name, then its numbers.
void write(const char* path, const std::vector<std::string>& outputs, const std::vector<Ort::Value>& values) {
  std::ofstream file(path);
  file.precision(9);
  for (size_t i = 0; i < outputs.size(); i++) {
    if (outputs[i].rfind("new/", 0) != 0) continue;
    file << outputs[i].substr(4);
    const size_t size = values[i].GetTensorTypeAndShapeInfo().GetElementCount();
    for (size_t j = 0; j < size; j++) file << ' ' << values[i].GetTensorData<float>()[j];
    file << '\n';
  }
}

}  // namespace

int main(int count, char** words) {
  if (count != 3) return std::fprintf(stderr, "usage: step STEP.onnx TRAINED.txt\n"), 2;

  // Eight rows in three classes; put your own here.
  std::vector<float> numbers(8 * 5), rate{0.01f};
  std::vector<int64_t> classes(8);
  for (size_t i = 0; i < numbers.size(); i++) numbers[i] = static_cast<float>(i * 37 % 101) / 101;
  for (size_t i = 0; i < classes.size(); i++) classes[i] = i % 3;
  const Ort::Value x = tensor(numbers, {8, 5}), target = tensor(classes, {8}), lr = tensor(rate, {});

  // docs: begin
  Ort::Env env(ORT_LOGGING_LEVEL_ERROR);
  Ort::Session session(env, words[1], Ort::SessionOptions());
  const std::vector<std::string> outputs = output_names(session);
  Ort::IoBinding bound(session);  // weights and state stay in onnxruntime from step to step
  bind_state(session, outputs, bound);
  bound.BindInput("x", x), bound.BindInput("target", target), bound.BindInput("lr", lr);
  for (int step = 0; step < 10; step++) {
    for (const std::string& name : outputs) bound.BindOutput(name.c_str(), cpu);  // anew: no result is written over
    session.Run(Ort::RunOptions(), bound);
    const std::vector<Ort::Value> values = bound.GetOutputValues();
    for (size_t i = 0; i < outputs.size(); i++) {
      if (outputs[i].rfind("new/", 0) == 0) bound.BindInput(outputs[i].c_str() + 4, values[i]);
      if (outputs[i] == "metric/loss") std::printf("%.6f\n", *values[i].GetTensorData<float>());
    }
  }
  // docs: end
  write(words[2], outputs, bound.GetOutputValues());
}

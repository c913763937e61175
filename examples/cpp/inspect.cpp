// Copyright (C) 2026 anomalib_ddpm_st authors
// SPDX-License-Identifier: Apache-2.0

// Inspects binary PPM images with an exported model: inspect model.xml image.ppm...

#include <cctype>
#include <fstream>
#include <iostream>
#include <openvino/openvino.hpp>
#include <stdexcept>
#include <string>

// An image of 8 bits a channel, in RGB, row by row.
ov::Tensor read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    size_t width = 0, height = 0, maximum = 0;
    file >> magic >> width >> height >> maximum;
    if (!file || magic != "P6" || maximum != 255 || !std::isspace(file.get()))
        throw std::runtime_error(path + " is not a binary PPM of 8 bits a channel");
    ov::Tensor image(ov::element::u8, {1, height, width, 3});
    if (!file.read(static_cast<char*>(image.data()), image.get_byte_size()))
        throw std::runtime_error(path + " is not complete");
    return image;
}

int main(int count, char* arguments[]) try {
    if (count < 3) throw std::runtime_error("Usage: inspect model.xml image.ppm...");
    ov::Core core;
    // The model takes float images in [0, 1], channels first. OpenVINO converts bytes, channels last.
    ov::preprocess::PrePostProcessor steps(core.read_model(arguments[1]));
    steps.input().tensor().set_element_type(ov::element::u8).set_layout("NHWC");
    steps.input().preprocess().convert_element_type(ov::element::f32).scale(255.0f);
    steps.input().model().set_layout("NCHW");
    // FP32, as in training: some processors would compute in bfloat16.
    auto model = core.compile_model(steps.build(), "CPU", ov::hint::inference_precision(ov::element::f32));
    auto request = model.create_infer_request();
    for (int index = 2; index < count; ++index) {
        request.set_input_tensor(read_ppm(arguments[index]));
        request.infer();
        const bool defective = request.get_tensor("pred_label").data<bool>()[0];
        const float score = request.get_tensor("pred_score").data<float>()[0];
        std::cout << arguments[index] << (defective ? " defective " : " good ") << score << '\n';
    }
} catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
}

// A live gauge of the process's memory and the engine's bits and hit rate, and a slider for the budget.
import Dollop
import SwiftUI
import os

/// Shows the gauge, updated twice a second.
struct EngineGauge: View {
    let model: ChatModel
    @State private var used: UInt64 = 0
    @State private var available: UInt64 = 1
    @State private var budget = 0.0

    var body: some View {
        VStack(alignment: .leading, spacing: 8) {
            Gauge(value: Double(used), in: 0...Double(used + available)) {
                Text("Memory")
            } currentValueLabel: {
                Text("\(size(used)) of \(size(used + available))").monospacedDigit()
            }
            .gaugeStyle(.accessoryLinearCapacity)
            HStack {
                figure("bits", model.bits.map { $0.formatted(.number.precision(.fractionLength(2))) })
                figure("hits", model.hitRate.map { $0.formatted(.percent.precision(.fractionLength(0))) })
                figure("tokens/s", model.speed.map { $0.formatted(.number.precision(.fractionLength(1))) })
                figure("trim", model.trim == .normal ? nil : String(describing: model.trim))
            }
            if let plan = model.plan, plan.streaming, plan.smallestBytes < model.mostMemory {
                Slider(value: $budget, in: Double(plan.smallestBytes)...Double(model.mostMemory)) {
                    Text("Budget")
                } onEditingChanged: { editing in
                    if !editing { Task { await model.setMemory(UInt64(budget)) } }
                }
                .onAppear { budget = Double(model.mostMemory) }
            }
        }
        .padding()
        .task {
            while !Task.isCancelled {
                used = footprint()
                available = UInt64(os_proc_available_memory())
                try? await Task.sleep(for: .milliseconds(500))
            }
        }
    }

    private func figure(_ name: String, _ value: String?) -> some View {
        VStack(alignment: .leading) {
            Text(value ?? "–").monospacedDigit()
            Text(name).font(.caption).foregroundStyle(.secondary)
        }
        .frame(maxWidth: .infinity, alignment: .leading)
    }

    private func size(_ bytes: UInt64) -> String { Int64(bytes).formatted(.byteCount(style: .memory)) }
}

/// The bytes that the system counts as this process's memory.
private func footprint() -> UInt64 {
    var info = task_vm_info_data_t()
    var count = mach_msg_type_number_t(MemoryLayout<task_vm_info_data_t>.size / MemoryLayout<integer_t>.size)
    let result = withUnsafeMutablePointer(to: &info) { pointer in
        pointer.withMemoryRebound(to: integer_t.self, capacity: Int(count)) { words in
            task_info(mach_task_self_, task_flavor_t(TASK_VM_INFO), words, &count)
        }
    }
    return result == KERN_SUCCESS ? info.phys_footprint : 0
}

// What the app knows and does. No SwiftUI here: this compiles on Linux too.
import Dollop
import Foundation
import Observation

/// A line of the conversation on the screen.
struct Line: Identifiable {
    let id = UUID()
    let role: String
    var text: String
}

@MainActor @Observable
final class ChatModel {
    private(set) var lines: [Line] = []
    /// What is being done, or what went wrong.
    private(set) var status = "Opening the model…"
    private(set) var isAnswering = false
    private(set) var isReady = false
    private(set) var speed: Double?
    /// Of the engine since it was opened: mean bits of the experts, and the part of them that was in memory.
    private(set) var bits: Double?
    private(set) var hitRate: Double?
    private(set) var plan: MemoryPlan?
    private(set) var trim = TrimLevel.normal
    /// The budget that the model was opened with.
    private(set) var mostMemory: UInt64 = 0

    private(set) var chat: ChatSession?
    private var engine: Engine?
    private var keeper: MemoryKeeper?
    private var answer: Task<Void, Never>?

    /// Opens the model within `memory` bytes, and goes on with the conversation that `saved` has.
    func open(_ model: URL, memory: UInt64, saved: URL) async {
        do {
            let plan = try await Engine.plan(contentsOf: model, options: EngineOptions(context: 2048))
            // Less than the whole budget where the model does not need it; never less than works.
            let budget = min(max(memory, plan.smallestBytes), plan.totalBytes)
            let engine = try await Engine(
                contentsOf: model,
                options: EngineOptions(memory: budget, backend: .automatic, context: 2048, streamsAlways: true))
            self.engine = engine
            self.plan = try engine.plan
            mostMemory = budget
            keeper = MemoryKeeper(engine) { [weak self] level, _ in
                Task { @MainActor [weak self] in self?.trim = level }
            }
            if let restored = try? await ChatSession(engine, contentsOf: saved) {
                chat = restored
                lines = try await restored.messages().map { Line(role: $0.role, text: $0.content) }
            } else {
                // There is none, or it is one of another model.
                chat = try await engine.chat()
            }
            isReady = true
            status = try engine.info.name
        } catch {
            status = error.localizedDescription
        }
    }

    func send(_ message: String) {
        guard let chat, let engine, !isAnswering else { return }
        isAnswering = true
        lines.append(Line(role: "user", text: message))
        lines.append(Line(role: "assistant", text: ""))
        let at = lines.count - 1
        answer = Task {
            defer { isAnswering = false }
            do {
                for try await event in chat.send(message) {
                    lines[at].text += event.text ?? ""
                    switch event {
                    case .prefill(let done, let total): status = "Reading \(done) of \(total) tokens"
                    case .token: status = "Answering"
                    case .gpuLost(let reason): status = reason
                    case .finished(let outcome):
                        speed = outcome.tokensPerSecond
                        status = outcome.stop == .contextFull ? "The context is full" : "Ready"
                    case .rest: break
                    }
                    let statistics = try engine.statistics
                    (bits, hitRate) = (statistics.meanBits, statistics.hitRate)
                }
            } catch {
                status = error.localizedDescription
            }
        }
    }

    /// Stops the answer; what was said stays.
    func stop() { chat?.cancel() }

    func clear() async {
        answer?.cancel()
        await answer?.value
        do {
            try await chat?.reset()
            lines = []
        } catch {
            status = error.localizedDescription
        }
    }

    /// Moves the budget while the engine works.
    func setMemory(_ bytes: UInt64) async {
        do {
            try await engine?.setMemory(bytes)
            plan = try engine?.plan
        } catch {
            status = error.localizedDescription
        }
    }
}

// The app's state and actions. It does not use SwiftUI, so that it also compiles on Linux.
import Dollop
import Foundation
import Observation

/// A message on the screen.
struct Line: Identifiable {
    let id = UUID()
    let role: String
    var text: String
}

/// The state of the app: one engine, one conversation, one answer at a time.
@MainActor @Observable
final class ChatModel {
    /// The messages on the screen.
    private(set) var lines: [Line] = []
    /// The current activity, or the last error.
    private(set) var status = "Opening the model…"
    /// Whether an answer is being generated.
    private(set) var isAnswering = false
    /// Whether the model is open.
    private(set) var isReady = false
    /// Tokens per second of the last answer.
    private(set) var speed: Double?
    /// Mean bits of the experts since the engine was opened.
    private(set) var bits: Double?
    /// The share of the needed planes that were in memory since the engine was opened.
    private(set) var hitRate: Double?
    /// How the memory budget is spent.
    private(set) var plan: Plan?
    /// The current trim level.
    private(set) var trim = TrimLevel.normal
    /// The budget that the model was opened with.
    private(set) var mostMemory: UInt64 = 0

    private(set) var chat: Chat?
    private var engine: Engine?
    private var follower: MemoryFollower?
    private var answer: Task<Void, Never>?

    /// Opens the model with a budget of at most `memory` bytes, and restores the conversation from the file `saved`.
    func open(_ model: URL, memory: UInt64, saved: URL) async {
        do {
            let plan = try await Engine.plan(contentsOf: model, options: EngineOptions(context: 2048))
            // No more than the model needs, and no less than the smallest budget that works.
            let budget = min(max(memory, plan.smallestBytes), plan.totalBytes)
            let engine = try await Engine(
                contentsOf: model,
                options: EngineOptions(memoryBytes: budget, backend: .auto, context: 2048, alwaysStream: true))
            self.engine = engine
            self.plan = try engine.plan
            mostMemory = budget
            follower = MemoryFollower(engine) { [weak self] level, _ in
                Task { @MainActor [weak self] in self?.trim = level }
            }
            if let restored = try? await Chat(engine, contentsOf: saved) {
                chat = restored
                lines = try await restored.messages().map { Line(role: $0.role, text: $0.content) }
            } else {
                // No conversation was saved, or it is of another model.
                chat = try await engine.chat()
            }
            isReady = true
            status = try engine.info.name
        } catch {
            status = error.localizedDescription
        }
    }

    /// Sends a message, and shows the answer as it is generated.
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
                    case .gpuLost(let note): status = note
                    case .done(let outcome):
                        speed = outcome.tokensPerSecond
                        status = outcome.stop == .contextFull ? "The context is full" : "Ready"
                    case .rest: break
                    }
                    let stats = try engine.stats
                    (bits, hitRate) = (stats.meanBits, stats.hitRate)
                }
            } catch {
                status = error.localizedDescription
            }
        }
    }

    /// Stops the answer. The text generated so far stays.
    func stop() { chat?.cancel() }

    /// Stops the answer and clears the conversation.
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

    /// Changes the memory budget, even during an answer.
    func setMemory(_ bytes: UInt64) async {
        do {
            try await engine?.setMemory(bytes)
            plan = try engine?.plan
        } catch {
            status = error.localizedDescription
        }
    }
}

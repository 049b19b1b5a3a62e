// Who has a chat: one call at a time.
import Foundation

/// The queue of those who want a chat. What ends by itself is waited for; an answer that is being generated is not, since its
/// consumer may be the one who would wait.
final class Turns: @unchecked Sendable {
    // Unchecked: the queue is reached through the condition's lock alone.
    private let condition = NSCondition()
    private var queue: [Turn] = []

    /// A place in the queue.
    final class Turn: Sendable {
        /// What it generates, if it does.
        let channel: Channel?

        init(_ channel: Channel?) { self.channel = channel }
    }

    /// Takes the next place, at once and in the order of calls.
    func join(_ channel: Channel? = nil) throws -> Turn {
        condition.lock()
        defer { condition.unlock() }
        if queue.contains(where: { $0.channel?.isOpen == true }) {
            throw DollopError(status: .busy, message: "an answer of this chat is being generated")
        }
        let turn = Turn(channel)
        queue.append(turn)
        return turn
    }

    /// Blocks until all before it are done. On threads that may block.
    func wait(for turn: Turn) {
        condition.lock()
        defer { condition.unlock() }
        while queue.first !== turn { condition.wait() }
    }

    func leave(_ turn: Turn) {
        condition.lock()
        defer { condition.unlock() }
        queue.removeAll { $0 === turn }
        condition.broadcast()
    }

    /// Stops all that is generated or will be; `cancel` stops the call of C that runs.
    func stop(_ cancel: () -> Void) {
        condition.lock()
        defer { condition.unlock() }
        queue.forEach { $0.channel?.stop() }
        cancel()
    }

    /// The same for what is generated in this turn, if it has not ended: the next turn's call does not begin meanwhile.
    func abandon(_ turn: Turn, _ cancel: () -> Void) {
        condition.lock()
        defer { condition.unlock() }
        turn.channel?.abandon()
        if queue.first === turn { cancel() }
    }
}

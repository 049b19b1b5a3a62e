// The app: opens the first model in its documents, or the one in its bundle, and keeps one conversation, which it saves.
import Dollop
import SwiftUI
import os

/// The app: one window with the chat.
@main
struct DollopChatApp: App {
    @State private var model = ChatModel()
    @State private var saver: BackgroundSaver?

    var body: some Scene {
        WindowGroup {
            ChatView(model: model)
                .task { await open() }
        }
    }

    private func open() async {
        let documents = URL.documentsDirectory
        let own = try? FileManager.default.contentsOfDirectory(at: documents, includingPropertiesForKeys: nil)
            .first { $0.pathExtension == "gguf" }
        guard let file = own ?? Bundle.main.url(forResource: "smollm2-moe", withExtension: "gguf") else { return }
        let saved = documents.appending(path: "conversation.dollop")
        // Two thirds of the memory available to the process. The rest is for the app.
        await model.open(file, memory: UInt64(os_proc_available_memory()) / 3 * 2, saved: saved)
        if let chat = model.chat { saver = BackgroundSaver(chat, to: saved) }
    }
}
